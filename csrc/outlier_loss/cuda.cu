// Outlier losses on CUDA (losses.h has the formulas): one kernel forward, one backward.
//
// Traffic of forward + backward: read, read, write of the logits, 3 N K sizeof(logit) bytes, which is the floor while
// the gradient is not made in forward (it is not: the upstream gradient scales it before it is rounded to float16).
// In addition per row: targets and weights once, per_sample written, kRowStats numbers written and read.
// A row's second pass over its own logits finds them in the level-1 cache, which four to six blocks share (38 to 64
// registers a thread forward, ptxas for sm_90), else in the level-2 cache.
// Threads: a sub-warp of 4..32 lanes per row up to 1024 classes, one block per row beyond. In-distribution and background
// rows may share a warp: what differs between them is chosen per lane, the reductions are common to all.
// Sums over rows: each block adds up its own in float64 and in a fixed order; the block that finishes last adds up those
// of all blocks, in a fixed order, so that results repeat bit for bit.
#include "../common/cuda_rows.cuh"
#include "cuda.h"
#include "row.h"

namespace fastood::outlier_loss {
namespace {

// What a kernel is compiled for: losses that share their passes share a kernel.
enum class Passes { kExponential, kEntropy, kNorm };

constexpr Passes passes_of(OutlierLoss loss) {
  return loss == OutlierLoss::kMagnitude ? Passes::kNorm
         : loss == OutlierLoss::kEntropy ? Passes::kEntropy
                                         : Passes::kExponential;
}

struct BlockTotals {
  RowTotals id;
  RowTotals background;
};

// One group's row, every lane with the same result. All lanes of a warp take part in all reductions.
template <Passes kPasses, int kWidth, typename Logit, typename T = Compute<Logit>>
__device__ __forceinline__ RowValue<T> row_value(const Logit* __restrict__ row, int64_t num_classes, RowTerm term,
                                                 bool wants_class, T* shared) {
  const int lane = threadIdx.x % kWidth;
  const T K = static_cast<T>(num_classes);
  RowValue<T> result;
  if constexpr (kPasses == Passes::kNorm) {
    T sum = 0;
    for (int64_t k = lane; k < num_classes; k += kWidth) {
      const T value = load(row + k);
      sum += value * value;
    }
    result.value = Group<kWidth>::reduce(sum, Add(), shared);
    return result;
  }

  // 1) mean and maximum; a sum is NaN where a logit is
  T sum = 0;
  T largest = -INFINITY;
  for (int64_t k = lane; k < num_classes; k += kWidth) {
    const T value = load(row + k);
    sum += value;
    largest = Max()(largest, value);
  }
  const T mean = Group<kWidth>::reduce(sum, Add(), shared) / K;
  largest = Group<kWidth>::reduce(largest, Max(), shared);
  const bool near_uniform = term == RowTerm::kUniformity || term == RowTerm::kEntropy;
  constexpr bool kEntropy = kPasses == Passes::kEntropy;
  const bool shift = kEntropy ? entropy_needs_shift(mean, largest, K) : needs_shift(mean, largest);
  const T anchor = !near_uniform ? largest : kEntropy ? entropy_base(mean, largest, K) : row_anchor(mean, largest);

  // 2) sums of deviations and exponentials; of a softmax row, the number of largest logits and the other exponentials
  RowSums<T> sums{0, 0, 0};
  int64_t largest_class = num_classes;
  for (int64_t k = lane; k < num_classes; k += kWidth) {
    const T value = load(row + k);
    if (value == largest) {
      largest_class = Min()(largest_class, k);
    }
    if (!near_uniform) {
      sums.deviation += value == largest ? T(1) : T(0);
      sums.exponential += value == largest ? T(0) : exp_fast(value - largest);
    } else if (kEntropy) {
      add_entropy(value, anchor, shift, sums);
    } else if (shift) {
      add_uniformity<true>(value, anchor, largest, sums);
    } else {
      add_uniformity<false>(value, anchor, largest, sums);
    }
  }
  sums.deviation = Group<kWidth>::reduce(sums.deviation, Add(), shared);
  sums.exponential = Group<kWidth>::reduce(sums.exponential, Add(), shared);
  if constexpr (kEntropy) {
    sums.product = Group<kWidth>::reduce(sums.product, Add(), shared);
  }
  if (wants_class) {  // the same for all threads
    // Through int: K < 2^24, and shuffles of four bytes are one instruction.
    __shared__ int shared_class[kThreads / 32];
    largest_class = Group<kWidth>::reduce(static_cast<int>(largest_class), Min(), shared_class);
  }

  // 3) the row
  if (near_uniform) {
    const RowSums<double> wide{sums.deviation, sums.exponential, sums.product};
    // Only the entropy's own rows are near uniform in its kernel.
    return kEntropy ? entropy_row(mean, largest, wide, K)
           : shift  ? uniformity_row_shifted(anchor, largest, wide, K)
                    : uniformity_row(anchor, largest, wide, K);
  }
  if (term == RowTerm::kMaximum) {
    result = maximum_row(largest, mean != mean);
  } else {
    result = softmax_row(largest, sums.deviation, sums.exponential);
  }
  result.largest_class = largest_class < num_classes ? largest_class : num_classes - 1;
  return result;
}

// The loss and the factors, from the totals of all blocks; by one whole block.
template <typename T>
__device__ void finish_loss(const LossSettings& settings, const BlockTotals* __restrict__ totals,  // [num_blocks]
                            int num_blocks, double* shared, double* __restrict__ factors, T* __restrict__ loss) {
  BlockTotals sum{{0, 0}, {0, 0}};
  for (int block = threadIdx.x; block < num_blocks; block += kThreads) {
    // Past the level-1 cache: other blocks wrote these.
    sum.id.loss += __ldcg(&totals[block].id.loss);
    sum.id.divisor += __ldcg(&totals[block].id.divisor);
    sum.background.loss += __ldcg(&totals[block].background.loss);
    sum.background.divisor += __ldcg(&totals[block].background.divisor);
  }
  sum.id.loss = Group<kThreads>::reduce(sum.id.loss, Add(), shared);
  sum.id.divisor = Group<kThreads>::reduce(sum.id.divisor, Add(), shared);
  sum.background.loss = Group<kThreads>::reduce(sum.background.loss, Add(), shared);
  sum.background.divisor = Group<kThreads>::reduce(sum.background.divisor, Add(), shared);
  if (threadIdx.x == 0) {
    double local[kNumFactors];
    store_factors(settings, sum.id, sum.background, local);
    for (int j = 0; j < kNumFactors; ++j) {
      factors[j] = local[j];
    }
    *loss = static_cast<T>(total_loss(settings, local));
  }
}

template <Passes kPasses, typename Logit, int kWidth, typename T = Compute<Logit>>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ OutlierLossParams p,
                                                           BlockTotals* __restrict__ totals,      // [gridDim.x]
                                                           unsigned* __restrict__ blocks_done) {  // zero at the start
  __shared__ T shared[kThreads / 32];
  __shared__ double shared_sum[kThreads / 32];
  constexpr int kRowsPerBlock = kThreads / kWidth;
  const int lane = threadIdx.x % kWidth;
  const T* weight = static_cast<const T*>(p.weight);
  const T* uniform01 = static_cast<const T*>(p.uniform01);
  BlockTotals mine{{0, 0}, {0, 0}};
  // Whole blocks walk the rows together: the shuffles need every lane, so that rows past the end repeat the last one.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock; first < p.num_rows;
       first += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const int64_t wanted = first + threadIdx.x / kWidth;
    const int64_t i = wanted < p.num_rows ? wanted : p.num_rows - 1;
    const Logit* row = static_cast<const Logit*>(p.logits) + i * p.row_stride;
    const int64_t target = p.targets == nullptr ? kNoTarget : p.targets[i];
    const RowValue<T> value =
        row_value<kPasses, kWidth>(row, p.num_classes, row_term(p.settings.loss, target < 0),
                                   kPasses == Passes::kExponential && needs_largest_class(p.settings.loss), shared);
    if (lane == 0 && wanted < p.num_rows) {
      const T w = weight == nullptr ? T(1) : weight[i];
      const T loss = finish_row(
          p.settings, value, p.num_classes, target, w, uniform01 == nullptr ? T(0) : uniform01[i],
          [row](int64_t k) -> T { return load(row + k); }, static_cast<T*>(p.row_stats) + kRowStats * i);
      static_cast<T*>(p.per_sample)[i] = loss;
      add_row(target < 0 ? mine.background : mine.id, w, loss, p.settings.by_weight);
    }
  }
  mine.id.loss = Group<kThreads>::reduce(mine.id.loss, Add(), shared_sum);
  mine.id.divisor = Group<kThreads>::reduce(mine.id.divisor, Add(), shared_sum);
  mine.background.loss = Group<kThreads>::reduce(mine.background.loss, Add(), shared_sum);
  mine.background.divisor = Group<kThreads>::reduce(mine.background.divisor, Add(), shared_sum);

  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    totals[blockIdx.x] = mine;
    __threadfence();  // the totals before the count
    is_last = gridDim.x == 1 || atomicAdd(blocks_done, 1u) == gridDim.x - 1;
    // The count before the other blocks' totals. A fence orders accesses of its own thread, so that the thread that has
    // read the count needs it; the barrier extends the order to the other threads.
    __threadfence();
  }
  __syncthreads();
  if (is_last) {
    finish_loss(p.settings, totals, static_cast<int>(gridDim.x), shared_sum, p.factors, static_cast<T*>(p.loss));
  }
}

template <RowTerm kTerm, int kWidth, typename Logit, typename T = Compute<Logit>>
__device__ __forceinline__ void write_gradient(const RowGradient<T>& gradient, const Logit* __restrict__ row,
                                               int64_t num_classes, Logit* __restrict__ grad) {
  for (int64_t k = threadIdx.x % kWidth; k < num_classes; k += kWidth) {
    const T logit = load(row + k);
    const T value = k == gradient.target     ? gradient.at_target(logit)
                    : gradient.scale == T(0) ? T(0)
                                             : gradient.template at<kTerm>(logit);
    store(grad + k, value);
  }
}

template <Passes kPasses, typename Logit, int kWidth, typename T = Compute<Logit>>
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ OutlierLossParams p) {
  constexpr int kRowsPerBlock = kThreads / kWidth;
  const double upstream = *static_cast<const T*>(p.grad_loss);
  const double factor_id = upstream * p.factors[kFactorId];
  const double factor_background = upstream * p.factors[kFactorBackground];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWidth; i < p.num_rows;
       i += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const RowGradient<T> gradient(p.settings.loss, static_cast<const T*>(p.row_stats) + kRowStats * i, factor_id,
                                  factor_background);
    const Logit* row = static_cast<const Logit*>(p.logits) + i * p.row_stride;
    Logit* grad = static_cast<Logit*>(p.grad_logits) + i * p.num_classes;
    if constexpr (kPasses == Passes::kNorm) {
      write_gradient<RowTerm::kNorm, kWidth>(gradient, row, p.num_classes, grad);
    } else if (kPasses == Passes::kEntropy && gradient.term == RowTerm::kEntropy) {
      write_gradient<RowTerm::kEntropy, kWidth>(gradient, row, p.num_classes, grad);
    } else if (kPasses == Passes::kExponential && gradient.term == RowTerm::kUniformity) {
      write_gradient<RowTerm::kUniformity, kWidth>(gradient, row, p.num_classes, grad);
    } else {
      write_gradient<RowTerm::kSoftmax, kWidth>(gradient, row, p.num_classes, grad);
    }
  }
}

// A batch that one block walks in four steps or fewer runs on one block, which saves the wait for others.
template <int kWidth>
unsigned forward_blocks(int64_t num_rows) {
  constexpr int64_t kRowsPerBlock = kThreads / kWidth;
  return num_rows <= 4 * kRowsPerBlock ? 1 : num_blocks<kWidth>(num_rows);
}

template <Passes kPasses, typename Logit>
cudaError_t forward(const OutlierLossParams& p, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  with_group_width(p.num_classes, [&](auto width) {
    const unsigned blocks = forward_blocks<width.value>(p.num_rows);
    auto* totals = static_cast<BlockTotals*>(p.workspace);
    auto* blocks_done = reinterpret_cast<unsigned*>(totals + blocks);
    if (blocks > 1) {
      error = cudaMemsetAsync(blocks_done, 0, sizeof(unsigned), stream);
    }
    if (error == cudaSuccess) {
      forward_kernel<kPasses, Logit, width.value><<<blocks, kThreads, 0, stream>>>(p, totals, blocks_done);
      error = cudaGetLastError();
    }
  });
  return error;
}

template <Passes kPasses, typename Logit>
cudaError_t backward(const OutlierLossParams& p, cudaStream_t stream) {
  if (p.num_rows == 0) {
    return cudaSuccess;
  }
  with_group_width(p.num_classes, [&](auto width) {
    backward_kernel<kPasses, Logit, width.value><<<num_blocks<width.value>(p.num_rows), kThreads, 0, stream>>>(p);
  });
  return cudaGetLastError();
}

// Calls launch with the passes of the loss as an integral constant.
template <typename Launch>
cudaError_t with_passes(OutlierLoss loss, const Launch& launch) {
  switch (passes_of(loss)) {
    case Passes::kNorm:
      return launch(std::integral_constant<Passes, Passes::kNorm>());
    case Passes::kEntropy:
      return launch(std::integral_constant<Passes, Passes::kEntropy>());
    default:
      return launch(std::integral_constant<Passes, Passes::kExponential>());
  }
}

}  // namespace

int64_t outlier_loss_workspace_bytes(int64_t num_rows, int64_t num_classes) {
  int64_t blocks = 1;
  with_group_width(num_classes, [&](auto width) { blocks = forward_blocks<width.value>(num_rows); });
  return blocks * static_cast<int64_t>(sizeof(BlockTotals)) + static_cast<int64_t>(sizeof(double));
}

cudaError_t launch_outlier_loss_forward(const OutlierLossParams& params, cudaStream_t stream) {
  return with_passes(params.settings.loss, [&](auto passes) {
    return with_logit_type(params.type, [&]<typename Logit>() { return forward<passes.value, Logit>(params, stream); });
  });
}

cudaError_t launch_outlier_loss_backward(const OutlierLossParams& params, cudaStream_t stream) {
  return with_passes(params.settings.loss, [&](auto passes) {
    return with_logit_type(params.type,
                           [&]<typename Logit>() { return backward<passes.value, Logit>(params, stream); });
  });
}

}  // namespace fastood::outlier_loss
