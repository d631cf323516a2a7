// Passes over the whole pool on CUDA: fill, sums, build, and the part of an exact step that moves undrawn examples.
//
// Traffic of an exact step: read and write omega and velocity, 16 N bytes, and 1/8 N of level 1. A warp takes a leaf block
// of 64 examples, two neighbours per lane; a block of threads takes 64 leaves, one node of level 2. Sums of rounded values
// are exact in any order (layout.h); the unrounded sums from which quanta are chosen have a fixed order.
#include "../common/grid_limit.h"
#include "cuda_device.h"
#include "status.h"

namespace fastood::background_pool {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// The partials of kPoolBlocks blocks, one or two for each thread.
constexpr int kFinishThreads = 1024;
constexpr int64_t kBlockExamples = kFanOut * kFanOut;

struct Magic {
  double mass;
  double weight;
  double square;
};

template <typename T>
__global__ void fill_kernel(T* __restrict__ values, int64_t count, T value) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    values[i] = value;
  }
}

// Sums leaf by leaf; first moves every example where kStep. masses is null for the plain sums of pool_sums.
template <PowerKind kPower, bool kStep>
__global__ void __launch_bounds__(kThreads) pass_kernel(float* __restrict__ omega,         // [N]
                                                        float* __restrict__ velocity,      // [N], where kStep
                                                        double* __restrict__ masses,       // levels, or null
                                                        const double* __restrict__ stats,  // [kStats], with masses
                                                        PoolLayout layout, float epsilon,
                                                        const PoolPlan* __restrict__ plan,    // or null
                                                        PoolTotals* __restrict__ partials) {  // [gridDim.x]
  __shared__ double shared[4][kWarps];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  if (plan != nullptr && plan->valid == 0) {
    return;
  }
  PoolStep step{};
  if constexpr (kStep) {
    step = plan->step;
  }
  Magic magic{0, 0, 0};
  if (masses != nullptr) {
    magic = {magic_of(stats[kMassQuantum]), magic_of(stats[kWeightQuantum]), magic_of(stats[kSquareQuantum])};
  }
  const int64_t num_blocks = (layout.num_examples + kBlockExamples - 1) / kBlockExamples;
  double total_mass = 0;
  double total_weight = 0;
  double total_square = 0;
  double largest = 0;
  for (int64_t block = blockIdx.x; block < num_blocks; block += gridDim.x) {
    // 1) eight leaves for each warp
    double block_mass = 0;
    for (int64_t leaf = block * kFanOut + warp; leaf < (block + 1) * kFanOut; leaf += kWarps) {
      double leaf_mass = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t i = leaf * kFanOut + half * kWarp + lane;
        if (i < layout.num_examples) {
          float value = omega[i];
          if constexpr (kStep) {
            const Moved moved = move_undrawn<kPower>(value, velocity[i], epsilon, step);
            value = moved.omega;
            omega[i] = moved.omega;
            velocity[i] = moved.velocity;
          }
          const PoolWeight e = weigh<kPower>(value, epsilon);
          const double p = quantise(e.mass, magic.mass);
          const double w = e.weight;
          leaf_mass += p;
          total_weight += quantise(w, magic.weight);
          total_square += quantise(w * w, magic.square);
          largest = largest < p ? p : largest;
        }
      }
      leaf_mass = warp_sum(leaf_mass);
      // Leaves past the last are padding of level 1, or past that.
      if (masses != nullptr && lane == 0 && leaf * kFanOut < layout.num_examples) {
        masses[leaf] = leaf_mass;
      }
      block_mass += leaf_mass;
    }
    // 2) their node of level 2
    __syncthreads();
    if (lane == 0) {
      shared[0][warp] = block_mass;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      double sum = 0;
      for (int other = 0; other < kWarps; ++other) {
        sum += shared[0][other];
      }
      total_mass += sum;
      if (masses != nullptr && layout.num_levels > 1) {
        masses[layout.offset[1] + block] = sum;
      }
    }
  }
  // 3) the totals of this block of threads
  total_weight = warp_sum(total_weight);
  total_square = warp_sum(total_square);
  largest = warp_max(largest);
  if (lane == 0) {  // other rows than 2) has, so that no barrier is needed before
    shared[1][warp] = total_weight;
    shared[2][warp] = total_square;
    shared[3][warp] = largest;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    PoolTotals total{total_mass, 0, 0, 0};
    for (int other = 0; other < kWarps; ++other) {
      total.weight += shared[1][other];
      total.square += shared[2][other];
      total.largest = total.largest < shared[3][other] ? shared[3][other] : total.largest;
    }
    partials[blockIdx.x] = total;
  }
}

// Adds up the partials in a fixed order. One block.
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const PoolTotals* __restrict__ partials,
                                                                int64_t count,                      // of partials
                                                                const PoolPlan* __restrict__ plan,  // or null
                                                                double* __restrict__ totals,        // Z, S, Q, or null
                                                                double* __restrict__ quanta,        // or null
                                                                double* __restrict__ bound) {       // or null
  __shared__ PoolTotals shared[kFinishThreads];
  if (plan != nullptr && plan->valid == 0) {
    return;
  }
  PoolTotals own{0, 0, 0, 0};
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) {
    own.mass += partials[i].mass;
    own.weight += partials[i].weight;
    own.square += partials[i].square;
    own.largest = own.largest < partials[i].largest ? partials[i].largest : own.largest;
  }
  shared[threadIdx.x] = own;
  for (int half = kFinishThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
      PoolTotals& a = shared[threadIdx.x];
      const PoolTotals& b = shared[threadIdx.x + half];
      a.mass += b.mass;
      a.weight += b.weight;
      a.square += b.square;
      a.largest = a.largest < b.largest ? b.largest : a.largest;
    }
  }
  if (threadIdx.x == 0) {
    if (totals != nullptr) {
      totals[0] = shared[0].mass;
      totals[1] = shared[0].weight;
      totals[2] = shared[0].square;
    }
    if (quanta != nullptr) {
      quanta[0] = choose_quantum(shared[0].mass);
      quanta[1] = choose_quantum(shared[0].weight);
      quanta[2] = choose_quantum(shared[0].square);
    }
    if (bound != nullptr) {
      *bound = shared[0].largest;
    }
  }
}

// Nodes of one level from the 64 children of each: a warp per node.
__global__ void __launch_bounds__(kThreads) level_kernel(const double* __restrict__ children,  // [64 num_nodes]
                                                         double* __restrict__ nodes, int64_t num_nodes,
                                                         const PoolPlan* __restrict__ plan) {  // or null
  if (plan != nullptr && plan->valid == 0) {
    return;
  }
  const int lane = threadIdx.x % kWarp;
  for (int64_t node = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; node < num_nodes;
       node += static_cast<int64_t>(gridDim.x) * kWarps) {
    const double sum = warp_sum(children[node * kFanOut + lane] + children[node * kFanOut + kWarp + lane]);
    if (lane == 0) {
      nodes[node] = sum;
    }
  }
}

unsigned grid_of(int64_t wanted) {
  return grid_limit(wanted, kPoolBlocks);
}

template <typename T>
cudaError_t fill(T* values, int64_t count, T value, cudaStream_t stream) {
  if (count > 0) {
    fill_kernel<T><<<grid_of(ceil_div(count, kThreads)), kThreads, 0, stream>>>(values, count, value);
  }
  return cudaGetLastError();
}

// Plain sums, which are not rounded, or quanta for them.
cudaError_t sum_plainly(const PoolParams& pool, const PoolPlan* plan, PoolTotals* partials, double* sums,
                        double* quanta, cudaStream_t stream) {
  const unsigned grid = grid_of(ceil_div(pool.layout.num_examples, kBlockExamples));
  with_power(pool.power, [&](auto power) {
    pass_kernel<power.value, false><<<grid, kThreads, 0, stream>>>(pool.omega, nullptr, nullptr, nullptr, pool.layout,
                                                                   pool.epsilon, plan, partials);
  });
  finish_kernel<<<1, kFinishThreads, 0, stream>>>(partials, grid, plan, sums, quanta, nullptr);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_pool_fill(float* values, int64_t count, float value, cudaStream_t stream) {
  return fill(values, count, value, stream);
}

cudaError_t launch_pool_fill(double* values, int64_t count, double value, cudaStream_t stream) {
  return fill(values, count, value, stream);
}

cudaError_t launch_pool_sums(const PoolParams& pool, PoolTotals* partials, double* sums, cudaStream_t stream) {
  return sum_plainly(pool, nullptr, partials, sums, nullptr, stream);
}

cudaError_t launch_pool_pass(PoolPass pass, const PoolParams& pool, const PoolPlan* plan, PoolTotals* partials,
                             cudaStream_t stream) {
  const unsigned grid = grid_of(ceil_div(pool.layout.num_examples, kBlockExamples));
  with_power(pool.power, [&](auto power) {
    if (pass == PoolPass::kBuild) {
      pass_kernel<power.value, false><<<grid, kThreads, 0, stream>>>(pool.omega, nullptr, pool.masses, pool.stats,
                                                                     pool.layout, pool.epsilon, plan, partials);
    } else {
      pass_kernel<power.value, true><<<grid, kThreads, 0, stream>>>(pool.omega, pool.velocity, pool.masses, pool.stats,
                                                                    pool.layout, pool.epsilon, plan, partials);
    }
  });
  finish_kernel<<<1, kFinishThreads, 0, stream>>>(partials, grid, plan, pool.stats, nullptr, pool.stats + kBound);
  for (int level = 2; level < pool.layout.num_levels; ++level) {
    const int64_t nodes = pool.layout.size[level - 1] / kFanOut;
    level_kernel<<<grid_of(ceil_div(nodes, kWarps)), kThreads, 0, stream>>>(
        pool.masses + pool.layout.offset[level - 1], pool.masses + pool.layout.offset[level], nodes, plan);
  }
  return cudaGetLastError();
}

cudaError_t launch_pool_build(const PoolParams& pool, PoolTotals* partials, cudaStream_t stream) {
  return launch_pool_pass(PoolPass::kBuild, pool, nullptr, partials, stream);
}

cudaError_t launch_pool_rescale(const PoolParams& pool, const PoolPlan* plan, PoolTotals* partials,
                                cudaStream_t stream) {
  const cudaError_t error = sum_plainly(pool, plan, partials, nullptr, pool.stats + kMassQuantum, stream);
  return error != cudaSuccess ? error : launch_pool_pass(PoolPass::kBuild, pool, plan, partials, stream);
}

}  // namespace fastood::background_pool
