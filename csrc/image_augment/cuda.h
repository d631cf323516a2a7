// Launcher of the augmentation: torch-free, so that the .cu compiles in seconds and needs no torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include "math.h"

namespace fastood::image_augment {

// out: [batch, channels, height, width], or with the channels last, of the type.
cudaError_t launch_augment_images(const AugmentParams& params, PixelType type, void* out, cudaStream_t stream);

}  // namespace fastood::image_augment
