// Work on a stream other than a launch of a .cu file: copies, memset, and kernels that CUB would launch.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>

#include "../cuda_runtime_api.h"

namespace emulation {

// Queues `work`, which `name` stands for in messages; an error if the stream is not that of the op.
cudaError_t queue_work(cudaStream_t stream, const char* name, const std::source_location& place,
                       std::function<void()> work);

// Marks memory as written by code that is not a kernel (variant "written").
void wrote(void* memory, size_t bytes);

}  // namespace emulation
