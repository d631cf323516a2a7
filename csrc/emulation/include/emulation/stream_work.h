// Work on a stream that is no launch: what a library would launch by itself.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>

#include "../cuda_runtime_api.h"

namespace emulation {

// Queues `work`, which `name` stands for in messages; an error if the stream is not that of the op.
cudaError_t queue_work(cudaStream_t stream, const char* name, const std::source_location& place,
                       std::function<void()> work);

// Says that memory was written by other code than that of kernels.
void wrote(void* memory, size_t bytes);

}  // namespace emulation
