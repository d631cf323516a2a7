// A step of ascent on CUDA: check and weigh the batch, move the undrawn examples (exact mode), then the drawn ones.
//
// The host decides nothing between the kernels: the plan on the device records whether the batch is valid, so that a
// step can be captured in a graph. Sums are updated by atomic additions of multiples of a quantum, which are exact in
// any order. Duplicates are neighbours after a stable sort of the batch by index, so that their losses are added in the order
// of the batch. Launches of a step: four (plan, gather, drawn, room), those of CUB's sort, those of a pass over the pool
// (exact mode), and those of launch_pool_rescale (a pool that is not sharded), which return at once unless a total has
// left the range of its quantum.
#include <cmath>
#include <cub/device/device_radix_sort.cuh>

#include "../common/grid_limit.h"
#include "../common/in_range.h"
#include "cuda_device.h"
#include "status.h"

namespace fastood::background_pool {
namespace {

// kLossLanes of batch.h: partial sums by position, folded in halves, so that CUDA and the CPU round alike.
constexpr int kThreads = 256;
// 64 registers a thread; without it nvcc 13.0 aims at 32 and 48, and spills.
constexpr int kBlocksPerMultiprocessor = 4;

// Checks the batch and makes the plan. One block.
template <PowerKind kPower>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) plan_kernel(PoolParams pool, PoolAscent ascent) {
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
    // A batch with an index out of range is sorted, too, but not looked at.
    ascent.keys[b] = readable_index(i, pool.layout.num_examples) << ascent.position_bits | b;
    if (!in_range(i, pool.layout.num_examples) || !(loss >= 0 && loss < INFINITY)) {
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
      ascent.status[0] = in_range(i, pool.layout.num_examples) ? kBadLoss : kBadIndex;
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
  if (ascent.plan->valid == 0) {
    return;
  }
  const int64_t positions = (int64_t{1} << ascent.position_bits) - 1;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < ascent.batch;
       at += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t key = ascent.sorted_keys[at];
    const int64_t index = key >> ascent.position_bits;
    PoolDrawn drawn{0, 0, 0, 0};
    if (at == 0 || ascent.sorted_keys[at - 1] >> ascent.position_bits != index) {
      double loss = ascent.loss[key & positions];
      for (int64_t next = at + 1; next < ascent.batch; ++next) {
        const int64_t other = ascent.sorted_keys[next];
        if (other >> ascent.position_bits != index) {
          break;
        }
        loss += ascent.loss[other & positions];
      }
      drawn = {pool.omega[index], pool.velocity[index], static_cast<float>(loss), 1};
    }
    ascent.drawn[key & positions] = drawn;
  }
}

// Steps the drawn examples from where they were, and corrects the sums by the difference to the present omega.
template <PowerKind kPower>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) drawn_kernel(PoolParams pool, PoolAscent ascent) {
  if (ascent.plan->valid == 0) {
    return;
  }
  const PoolStep step = ascent.plan->step;
  const double mass_magic = magic_of(pool.stats[kMassQuantum]);
  const double weight_magic = magic_of(pool.stats[kWeightQuantum]);
  const double square_magic = magic_of(pool.stats[kSquareQuantum]);
  double mass_changes = 0;
  double weight_changes = 0;
  double square_changes = 0;
  double largest = 0;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < ascent.batch;
       b += static_cast<int64_t>(gridDim.x) * kThreads) {
    const PoolDrawn drawn = ascent.drawn[b];
    if (drawn.owner == 0) {
      continue;
    }
    int64_t node = ascent.index[b];
    const PoolWeight before = weigh<kPower>(pool.omega[node], pool.epsilon);
    const Moved moved = move_drawn<kPower>(drawn.omega, drawn.velocity, drawn.loss, pool.epsilon, step);
    const PoolWeight after = weigh<kPower>(moved.omega, pool.epsilon);
    pool.omega[node] = moved.omega;
    pool.velocity[node] = moved.velocity;
    const double w = after.weight;
    const double w_before = before.weight;
    const double mass = quantise(after.mass, mass_magic);
    const double mass_change = mass - quantise(before.mass, mass_magic);
    mass_changes += mass_change;
    weight_changes += quantise(w, weight_magic) - quantise(w_before, weight_magic);
    square_changes += quantise(w * w, square_magic) - quantise(w_before * w_before, square_magic);
    largest = largest < mass ? mass : largest;
    for (int level = 0; level < pool.layout.num_levels; ++level) {
      node >>= kFanOutBits;
      atomicAdd(pool.masses + pool.layout.offset[level] + node, mass_change);
    }
  }
  mass_changes = warp_sum(mass_changes);
  weight_changes = warp_sum(weight_changes);
  square_changes = warp_sum(square_changes);
  largest = warp_max(largest);
  if (threadIdx.x % kWarp == 0) {
    atomicAdd(pool.stats + kMassTotal, mass_changes);
    atomicAdd(pool.stats + kWeightTotal, weight_changes);
    atomicAdd(pool.stats + kSquareTotal, square_changes);
    // Doubles that are not negative are ordered like their bits.
    atomicMax(reinterpret_cast<long long*>(pool.stats + kBound), __double_as_longlong(largest));
  }
}

// Whether the totals are still in the range of their quanta; if not, a pool that is not sharded is rescaled.
__global__ void room_kernel(const double* __restrict__ stats, PoolAscent ascent) {
  bool room = true;
  for (int i = 0; i < 3; ++i) {
    room = room && has_room(stats[kMassTotal + i], stats[kMassQuantum + i]);
  }
  const bool leaves = ascent.plan->valid == 1 && !room;
  ascent.rescale->valid = leaves && ascent.shared == nullptr ? 1 : 0;
  if (leaves && ascent.shared != nullptr) {
    ascent.status[0] = kNeedsBuild;
  }
}

// Both calls of CUB: the query for the size of the scratch (work == null), and the sort.
cudaError_t sort_batch(const PoolAscent& ascent, void* work, size_t* work_bytes, cudaStream_t stream) {
  // By the index alone: the sort is stable, and the positions ascend.
  return cub::DeviceRadixSort::SortKeys(work, *work_bytes, ascent.keys, ascent.sorted_keys, ascent.batch,
                                        ascent.position_bits, ascent.position_bits + ascent.index_bits, stream);
}

}  // namespace

cudaError_t pool_ascend_work_bytes(const PoolAscent& ascent, size_t* work_bytes) {
  *work_bytes = 0;
  return ascent.batch == 0 ? cudaSuccess : sort_batch(ascent, nullptr, work_bytes, nullptr);
}

cudaError_t launch_pool_ascend(const PoolParams& pool, const PoolAscent& ascent, cudaStream_t stream) {
  const unsigned grid = grid_limit(ceil_div(ascent.batch, kThreads), kPoolBlocks);
  with_power(pool.power, [&](auto power) { plan_kernel<power.value><<<1, kThreads, 0, stream>>>(pool, ascent); });
  if (grid > 0) {
    size_t work_bytes = ascent.work_bytes;
    const cudaError_t error = sort_batch(ascent, ascent.work, &work_bytes, stream);
    if (error != cudaSuccess) {
      return error;
    }
    gather_kernel<<<grid, kThreads, 0, stream>>>(pool, ascent);
  }
  if (!ascent.sparse) {
    const cudaError_t error = launch_pool_pass(PoolPass::kStep, pool, ascent.plan, ascent.partials, stream);
    if (error != cudaSuccess) {
      return error;
    }
  }
  if (grid > 0) {
    with_power(pool.power, [&](auto power) { drawn_kernel<power.value><<<grid, kThreads, 0, stream>>>(pool, ascent); });
  }
  room_kernel<<<1, 1, 0, stream>>>(pool.stats, ascent);
  return ascent.shared == nullptr ? launch_pool_rescale(pool, ascent.rescale, ascent.partials, stream)
                                  : cudaGetLastError();
}

}  // namespace fastood::background_pool
