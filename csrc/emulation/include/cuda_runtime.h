// What a .cu file sees of CUDA in the emulation: csrc/emulation/README.md.
#pragma once

#include "cuda_runtime_api.h"
#include "emulation/atomics.h"
#include "emulation/collectives.h"
#include "emulation/intrinsics.h"
#include "emulation/launch.h"
#include "emulation/qualifiers.h"
#include "emulation/shared.h"
