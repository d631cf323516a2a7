// Draws on CUDA: a warp per draw. Rejection tries 32 candidates at once and takes the first that is accepted, the same one
// that the CPU finds trial by trial; a descent reads the 64 children of a node two per lane and scans them by shuffles.
// Bytes of a descent: 512 per level and 256 of omega, each a dependent load; at 10^9 examples six of them.
#include <cmath>

#include "../common/grid_limit.h"
#include "../common/in_range.h"
#include "cuda_device.h"

namespace fastood::background_pool {
namespace {

constexpr int kThreads = 128;
// 64 registers a thread; without it nvcc 13.0 aims at 48, and spills.
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kWarps = kThreads / kWarp;

// Which of 64 masses, two per lane in order, holds the target, which becomes the target within it. The same in every lane.
__device__ int find_child(double first, double second, double* target) {
  const int lane = threadIdx.x % kWarp;
  double end = first + second;  // of this lane's pair in the running sum: exact, like every sum here
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const double before = __shfl_up_sync(kFullWarp, end, offset);
    end += lane >= offset ? before : 0.0;
  }
  const unsigned past = __ballot_sync(kFullWarp, *target < end);
  const int holder = past == 0 ? kWarp - 1 : __ffs(static_cast<int>(past)) - 1;
  const double begin = end - (first + second);
  const bool in_second = *target - begin >= first;
  const double rest = *target - begin - (in_second ? first : 0.0);
  *target = __shfl_sync(kFullWarp, rest, holder);
  return 2 * holder + (__shfl_sync(kFullWarp, static_cast<int>(in_second), holder));
}

// -1 if the descent leaves the pool, which happens only for masses that do not belong to omega.
template <PowerKind kPower>
__device__ int64_t descend(const PoolParams& pool, double target, double magic) {
  const int lane = threadIdx.x % kWarp;
  int64_t node = 0;
  for (int level = pool.layout.num_levels - 1; level >= 0; --level) {
    const double* children = pool.masses + pool.layout.offset[level] + node * kFanOut;
    node = node * kFanOut + find_child(children[2 * lane], children[2 * lane + 1], &target);
    // A node of the padding has no children.
    if (node >= pool.layout.num_nodes(level)) {
      return -1;
    }
  }
  double mass[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t i = node * kFanOut + 2 * lane + half;
    if (i < pool.layout.num_examples) {
      mass[half] = quantise(weigh<kPower>(pool.omega[i], pool.epsilon).mass, magic);
    }
  }
  const int64_t found = node * kFanOut + find_child(mass[0], mass[1], &target);
  return found < pool.layout.num_examples ? found : -1;
}

template <PowerKind kPower>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    draw_kernel(PoolParams pool, const double* __restrict__ uniform,  // [B]
                int64_t count, int64_t* __restrict__ index,           // [B]
                float* __restrict__ importance) {                     // [B]
  const int lane = threadIdx.x % kWarp;
  const double total = pool.stats[kMassTotal];
  const double quantum = pool.stats[kMassQuantum];
  const double magic = magic_of(quantum);
  const double bound = pool.stats[kBound];
  const double ratio = total / pool.stats[kWeightTotal];
  const bool reject = static_cast<double>(pool.layout.num_examples) * bound <= kWorthwhileTrials * total;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; b < count;
       b += static_cast<int64_t>(gridDim.x) * kWarps) {
    // A draw that the CPU op refuses has the index -1 and the importance NaN: a check on the host would synchronise
    // with the device.
    const bool valid = uniform[b] >= 0 && uniform[b] < 1 && total > 0;
    int64_t found = -1;
    for (uint32_t trial = 0; valid && reject && found < 0 && trial < kMaxTrials; trial += kWarp) {
      const Candidate proposed = candidate(uniform[b], trial + lane);
      const int64_t i = scale_index(proposed.index_bits, pool.layout.num_examples);
      const double p = quantise(weigh<kPower>(pool.omega[i], pool.epsilon).mass, magic);
      const unsigned accepted = __ballot_sync(kFullWarp, proposed.uniform * bound < p);
      if (accepted != 0) {
        found = __shfl_sync(kFullWarp, i, __ffs(static_cast<int>(accepted)) - 1);
      }
    }
    if (valid && found < 0) {
      found = descend<kPower>(pool, draw_target(uniform[b], total, quantum), magic);
    }
    if (lane == 0) {
      const float omega = found < 0 ? 0.0f : pool.omega[found];
      const auto factor = static_cast<float>(ratio * evaluate<kPower>(omega, pool.epsilon).rest);
      index[b] = found;
      importance[b] = found < 0 ? NAN : factor;
    }
  }
}

template <PowerKind kPower>
__global__ void __launch_bounds__(kThreads) find_kernel(PoolParams pool, const double* __restrict__ target,  // [B]
                                                        int64_t count, int64_t* __restrict__ index) {        // [B]
  const double magic = magic_of(pool.stats[kMassQuantum]);
  const double total = pool.stats[kMassTotal];
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; b < count;
       b += static_cast<int64_t>(gridDim.x) * kWarps) {
    const bool valid = target[b] >= 0 && target[b] < total;
    const int64_t found = valid ? descend<kPower>(pool, target[b], magic) : -1;
    if (threadIdx.x % kWarp == 0) {
      index[b] = found;
    }
  }
}

template <PowerKind kPower>
__global__ void __launch_bounds__(kThreads) importance_kernel(PoolParams pool,
                                                              const int64_t* __restrict__ index,                 // [B]
                                                              int64_t count, double* __restrict__ importance) {  // [B]
  const double ratio = pool.stats[kMassTotal] / pool.stats[kWeightTotal];
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < count;
       b += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t i = index[b];
    const bool inside = in_range(i, pool.layout.num_examples);
    const float omega = inside ? pool.omega[i] : 0.0f;
    const double rest = is_removed(omega) ? 0.0 : ratio * evaluate<kPower>(omega, pool.epsilon).rest;
    importance[b] = inside ? rest : static_cast<double>(NAN);
  }
}

unsigned grid_of(int64_t wanted) {
  constexpr int64_t kMaxBlocks = 1 << 16;
  return grid_limit(wanted, kMaxBlocks);
}

}  // namespace

cudaError_t launch_pool_draw(const PoolParams& pool, const double* uniform, int64_t count, int64_t* index,
                             float* importance, cudaStream_t stream) {
  if (count > 0) {
    with_power(pool.power, [&](auto power) {
      draw_kernel<power.value>
          <<<grid_of(ceil_div(count, kWarps)), kThreads, 0, stream>>>(pool, uniform, count, index, importance);
    });
  }
  return cudaGetLastError();
}

cudaError_t launch_pool_find(const PoolParams& pool, const double* target, int64_t count, int64_t* index,
                             cudaStream_t stream) {
  if (count > 0) {
    with_power(pool.power, [&](auto power) {
      find_kernel<power.value><<<grid_of(ceil_div(count, kWarps)), kThreads, 0, stream>>>(pool, target, count, index);
    });
  }
  return cudaGetLastError();
}

cudaError_t launch_pool_importance(const PoolParams& pool, const int64_t* index, int64_t count, double* importance,
                                   cudaStream_t stream) {
  if (count > 0) {
    with_power(pool.power, [&](auto power) {
      importance_kernel<power.value>
          <<<grid_of(ceil_div(count, kThreads)), kThreads, 0, stream>>>(pool, index, count, importance);
    });
  }
  return cudaGetLastError();
}

}  // namespace fastood::background_pool
