// Launches: translate.py makes `kernel<<<grid, block, shared, stream>>>(arguments)` a call of emulation::launch.
#pragma once

#include <cstddef>
#include <functional>
#include <source_location>
#include <type_traits>

#include "../cuda_runtime_api.h"

// One dimension: `.y` of an index does not compile.
struct EmulatedIndex {
  unsigned x;
};
// Indices of the running thread, set at every switch of fibers.
extern EmulatedIndex threadIdx;
extern EmulatedIndex blockIdx;
extern EmulatedIndex blockDim;
extern EmulatedIndex gridDim;
constexpr int warpSize = 32;

namespace emulation {

using Place = std::source_location;

struct Config {
  unsigned long long grid;
  unsigned long long block;
  size_t shared_bytes;
  cudaStream_t stream;
  Place place;

  // Without a stream argument the launch is on the legacy default stream, which is not the stream of the op.
  template <typename Grid, typename Block>
  Config(Grid grid_, Block block_, size_t shared_bytes_ = 0, cudaStream_t stream_ = nullptr,
         Place place_ = Place::current())
      : grid(static_cast<unsigned long long>(grid_)),
        block(static_cast<unsigned long long>(block_)),
        shared_bytes(shared_bytes_),
        stream(stream_),
        place(place_) {
    static_assert(std::is_integral_v<Grid> && std::is_integral_v<Block>,
                  "2-D and 3-D grids and blocks are not emulated: give the size as an integer");
  }
};

constexpr size_t kMaxArgumentBytes = 4096;

// Bytes of a kernel's arguments, each at a multiple of its alignment.
template <typename... Args>
constexpr size_t argument_bytes() {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(Args) - 1) / alignof(Args) * alignof(Args) + sizeof(Args)), ...);
  return bytes;
}

// Queues the kernel on the stream, or records an error of the launch: runtime/launch.cpp.
void queue_launch(const Config& config, const char* kernel, std::function<void()> body);

// `kernel` is a function, or a lambda that calls one. The arguments are copied now, as by a GPU's driver.
template <typename Kernel, typename... Args>
void launch(const Config& config, const char* name, Kernel kernel, Args... args) {
  static_assert((std::is_trivially_copyable_v<Args> && ...), "an argument of a kernel is copied byte by byte");
  static_assert(argument_bytes<Args...>() <= kMaxArgumentBytes, "more than 4 KB of arguments of a kernel");
  queue_launch(config, name, [kernel, args...] { kernel(args...); });
}

}  // namespace emulation
