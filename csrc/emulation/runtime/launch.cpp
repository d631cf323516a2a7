// Launches: limits of sm_75, and a grid whose blocks run one after the other.
#include "../include/emulation/launch.h"

#include <numeric>
#include <stdexcept>
#include <vector>

#include "block.h"
#include "stream.h"

namespace emulation {
namespace {

constexpr unsigned long long kMaxThreads = 1024;
constexpr unsigned long long kMaxGrid = 0x7fffffff;

void run_grid(const Config& config, const char* kernel, const std::function<void()>& body) {
  // All launches with one seed begin in one state, so that a failure is repeated when the kernel runs alone.
  order.shuffled = seed != 0;
  order.state = 0x9E3779B97F4A7C15ull * static_cast<uint64_t>(seed + 1) | 1;
  const auto num_blocks = static_cast<unsigned>(config.grid);
  std::vector<unsigned> blocks(num_blocks);
  std::iota(blocks.begin(), blocks.end(), 0u);
  if (order.shuffled) {
    for (unsigned i = num_blocks - 1; i > 0; --i) std::swap(blocks[i], blocks[order.draw() % (i + 1)]);
  }
  gridDim.x = num_blocks;
  blockDim.x = static_cast<unsigned>(config.block);
  begin_launch_order();
  for (const unsigned index : blocks) {
    blockIdx.x = index;
    block.run(kernel, config.place, static_cast<int>(config.block), body);
  }
  end_launch_order();
}

}  // namespace

void queue_launch(const Config& config, const char* kernel, std::function<void()> body) {
  check_stream(config.stream, kernel, config.place);
  const std::string size = std::string(kernel) + "<<<" + std::to_string(config.grid) + ", " +
                           std::to_string(config.block) + ">>> at " + text_of(config.place);
  if (config.grid == 0 || config.block == 0) {
    return set_last_error(cudaErrorInvalidConfiguration, size + " is empty");
  }
  if (config.block > kMaxThreads) {
    return set_last_error(cudaErrorInvalidConfiguration, size + ": a block has at most 1024 threads");
  }
  if (config.grid > kMaxGrid) {
    return set_last_error(cudaErrorInvalidConfiguration, size + ": a grid has at most 2^31 - 1 blocks");
  }
  if (config.shared_bytes != 0) {
    throw std::runtime_error("emulated CUDA: " + size + ": dynamic shared memory is not emulated");
  }
  ++counters.launches;
  enqueue(kernel, config.place, [config, kernel, body = std::move(body)] { run_grid(config, kernel, body); });
}

}  // namespace emulation
