// The part of CUDA that the emulation offers to a .cu file: csrc/emulation/README.md.
#pragma once

#include "cuda_runtime_api.h"
#include "emulation/atomics.h"
#include "emulation/collectives.h"
#include "emulation/intrinsics.h"
#include "emulation/launch.h"
#include "emulation/qualifiers.h"
#include "emulation/shared.h"
