// A step of ascent on CUDA: check and weigh the batch, move the undrawn examples (exact mode), then the drawn ones.
//
// The host decides nothing between the kernels: the plan on the device records whether the batch is valid, so that a
// step can be captured in a graph. Sums are updated by atomic additions of multiples of a quantum, which are exact in
// any order. Duplicates are found by comparing all pairs of the batch, B^2 comparisons spread over the GPU: at
// B = 4096, 128 for each of 132 * 1024 threads.
#include <cmath>

#include "cuda_device.h"
#include "status.h"

namespace fastood::background_pool {
namespace {

// kLossLanes of batch.h: partial sums by position, folded in halves, so that CUDA and the CPU round alike.
constexpr int kThreads = 256;

// Checks the batch and makes the plan. One block.
template <PowerKind kPower>
__global__ void __launch_bounds__(kThreads) plan_kernel(PoolParams pool, PoolAscent ascent) {
  __shared__ double lanes[kThreads];
  __shared__ unsigned long long first_bad;
  if (threadIdx.x == 0) {
    first_bad = ~0ull;
  }
  __syncthreads();
  const double mass_total = ascent.shared == nullptr ? pool.stats[kMassTotal] : ascent.shared[0];
  const double weight_total = ascent.shared == nullptr ? pool.stats[kWeightTotal] : ascent.shared[1];
  const double ratio = mass_total / weight_total;
  // 1) every value, and the weighted loss
  double sum = 0;
  for (int64_t b = threadIdx.x; b < ascent.batch; b += kThreads) {
    const int64_t i = ascent.index[b];
    const double loss = ascent.loss[b];
    if (i < 0 || i >= pool.layout.num_examples || !(loss >= 0 && loss < INFINITY)) {
      atomicMin(&first_bad, static_cast<unsigned long long>(b));
    } else {
      const float omega = pool.omega[i];
      const PoolExample e = evaluate<kPower>(omega, pool.epsilon);
      sum += is_removed(omega) ? 0 : ratio * e.rest * loss;
    }
  }
  lanes[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
      lanes[threadIdx.x] += lanes[threadIdx.x + half];
    }
  }
  // 2) the status
  if (threadIdx.x == 0) {
    const double batch = ascent.shared == nullptr ? static_cast<double>(ascent.batch) : ascent.shared[3];
    const double loss = ascent.shared == nullptr ? lanes[0] / batch : ascent.shared[2];
    ascent.status[1] = -1;
    if (first_bad != ~0ull) {
      const int64_t i = ascent.index[first_bad];
      ascent.status[0] = i < 0 || i >= pool.layout.num_examples ? kBadIndex : kBadLoss;
      ascent.status[1] = static_cast<int64_t>(first_bad);
      ascent.plan->valid = 0;
    } else if (!is_small_enough(loss, ascent.lr, mass_total, weight_total)) {
      ascent.status[0] = kTooLarge;
      ascent.plan->valid = 0;
    } else {
      ascent.status[0] = kDone;
      ascent.plan->step = pool_step(loss, batch, mass_total, weight_total, ascent.epsilon, ascent.momentum, ascent.lr);
      ascent.plan->valid = 1;
    }
  }
}

// Gathers the drawn examples before any is updated, each once: at its first position, with its losses in batch order.
__global__ void __launch_bounds__(kThreads) gather_kernel(PoolParams pool, PoolAscent ascent) {
  __shared__ int64_t indices[kThreads];
  __shared__ double losses[kThreads];
  if (ascent.plan->valid == 0) {
    return;
  }
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t own = b < ascent.batch ? ascent.index[b] : -1;
  bool owner = b < ascent.batch;
  double loss = 0;
  for (int64_t begin = 0; begin < ascent.batch; begin += kThreads) {
    __syncthreads();
    if (begin + threadIdx.x < ascent.batch) {
      indices[threadIdx.x] = ascent.index[begin + threadIdx.x];
      losses[threadIdx.x] = ascent.loss[begin + threadIdx.x];
    }
    __syncthreads();
    const int count = static_cast<int>(ascent.batch - begin < kThreads ? ascent.batch - begin : kThreads);
    for (int other = 0; other < count; ++other) {
      if (indices[other] == own) {
        owner = owner && begin + other >= b;
        loss += losses[other];
      }
    }
  }
  if (b < ascent.batch) {
    ascent.drawn[b] = {pool.omega[own], pool.velocity[own], static_cast<float>(loss), owner ? 1 : 0};
  }
}

// Steps the drawn examples from where they were, and corrects the sums by the difference to the present omega.
template <PowerKind kPower>
__global__ void __launch_bounds__(kThreads) drawn_kernel(PoolParams pool, PoolAscent ascent) {
  if (ascent.plan->valid == 0) {
    return;
  }
  const PoolStep step = ascent.plan->step;
  const double mass_magic = magic_of(pool.stats[kMassQuantum]);
  const double weight_magic = magic_of(pool.stats[kWeightQuantum]);
  const double square_magic = magic_of(pool.stats[kSquareQuantum]);
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  double mass_change = 0;
  double weight_change = 0;
  double square_change = 0;
  double mass = 0;
  if (b < ascent.batch && ascent.drawn[b].owner == 1) {
    const PoolDrawn drawn = ascent.drawn[b];
    int64_t node = ascent.index[b];
    const PoolWeight before = weigh<kPower>(pool.omega[node], pool.epsilon);
    const Moved moved = move_drawn<kPower>(drawn.omega, drawn.velocity, drawn.loss, pool.epsilon, step);
    const PoolWeight after = weigh<kPower>(moved.omega, pool.epsilon);
    pool.omega[node] = moved.omega;
    pool.velocity[node] = moved.velocity;
    const double w = after.weight;
    const double w_before = before.weight;
    mass = quantise(after.mass, mass_magic);
    mass_change = mass - quantise(before.mass, mass_magic);
    weight_change = quantise(w, weight_magic) - quantise(w_before, weight_magic);
    square_change = quantise(w * w, square_magic) - quantise(w_before * w_before, square_magic);
    for (int level = 0; level < pool.layout.num_levels; ++level) {
      node >>= kFanOutBits;
      atomicAdd(pool.masses + pool.layout.offset[level] + node, mass_change);
    }
  }
  mass_change = warp_sum(mass_change);
  weight_change = warp_sum(weight_change);
  square_change = warp_sum(square_change);
  mass = warp_max(mass);
  if (threadIdx.x % kWarp == 0) {
    atomicAdd(pool.stats + kMassTotal, mass_change);
    atomicAdd(pool.stats + kWeightTotal, weight_change);
    atomicAdd(pool.stats + kSquareTotal, square_change);
    // Doubles that are not negative are ordered like their bits.
    atomicMax(reinterpret_cast<long long*>(pool.stats + kBound), __double_as_longlong(mass));
  }
}

__global__ void room_kernel(const double* __restrict__ stats, PoolAscent ascent) {
  if (ascent.plan->valid == 1) {
    bool room = true;
    for (int i = 0; i < 3; ++i) {
      room = room && has_room(stats[kMassTotal + i], stats[kMassQuantum + i]);
    }
    ascent.status[0] = room ? kDone : kNeedsBuild;
  }
}

}  // namespace

cudaError_t launch_pool_ascend(const PoolParams& pool, const PoolAscent& ascent, cudaStream_t stream) {
  const int grid = static_cast<int>(ceil_div(ascent.batch, kThreads));
  with_power(pool.power, [&](auto power) { plan_kernel<power.value><<<1, kThreads, 0, stream>>>(pool, ascent); });
  if (grid > 0) {
    gather_kernel<<<grid, kThreads, 0, stream>>>(pool, ascent);
  }
  if (!ascent.sparse) {
    const cudaError_t error = launch_pool_pass(pool, ascent.plan, ascent.partials, stream);
    if (error != cudaSuccess) {
      return error;
    }
  }
  if (grid > 0) {
    with_power(pool.power, [&](auto power) { drawn_kernel<power.value><<<grid, kThreads, 0, stream>>>(pool, ascent); });
  }
  room_kernel<<<1, 1, 0, stream>>>(pool.stats, ascent);
  return cudaGetLastError();
}

}  // namespace fastood::background_pool
