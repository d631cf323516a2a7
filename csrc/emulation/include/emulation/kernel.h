// Included before every translated .cu file, as nvcc includes cuda_runtime.h.
#pragma once

#include "../cuda_runtime.h"
#include "grid_cap.h"
#if defined(FASTOOD_EMULATION_MUTANTS)
#include "mutants.h"
#endif
