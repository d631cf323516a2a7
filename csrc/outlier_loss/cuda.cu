// Uniformity loss on CUDA (math.h has the formula).
//
// Traffic of forward + backward: read, read, write of the logits, 3 N K sizeof(logit) bytes, which is the floor while
// the gradient is not made in forward (it is not: the upstream gradient scales it before it is rounded to float16).
// A row's second pass over its own logits finds them in the level-1 cache (eight blocks share its 200 KB: up to about 6k
// float32 classes for a block per row), else in the level-2 cache.
// Threads: a sub-warp of 4..32 lanes per row up to 1024 classes, one block per row beyond. Sums over rows go through one
// block in a fixed order, so that results repeat bit for bit.
#include "../common/cuda_rows.cuh"
#include "cuda.h"
#include "math.h"

namespace fastood {
namespace {

// The reduction over rows is latency-bound: as many threads as a block may have.
constexpr int kReduceThreads = 1024;

template <typename Logit, int kWidth, typename T = typename ComputeOf<Logit>::type>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Logit* __restrict__ logits,  // [N, K]
                                                           int64_t row_stride, int64_t num_rows, int64_t num_classes,
                                                           T* __restrict__ per_sample,   // [N]
                                                           T* __restrict__ row_stats) {  // [N, kRowStats]
  __shared__ T shared[kThreads / 32];
  constexpr int kRowsPerBlock = kThreads / kWidth;
  const int lane = threadIdx.x % kWidth;
  const T K = static_cast<T>(num_classes);
  // Whole blocks walk the rows together: the shuffles need every lane, so that rows past the end repeat the last one.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock; first < num_rows;
       first += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const int64_t wanted = first + threadIdx.x / kWidth;
    const int64_t i = wanted < num_rows ? wanted : num_rows - 1;
    const Logit* row = logits + i * row_stride;

    // 1) anchor: mean and maximum
    T sum = 0;
    T largest = -INFINITY;
    for (int64_t k = lane; k < num_classes; k += kWidth) {
      const T value = load(row + k);
      sum += value;
      largest = Max()(largest, value);
    }
    const T mean = Group<kWidth>::reduce(sum, Add(), shared) / K;
    largest = Group<kWidth>::reduce(largest, Max(), shared);
    const T anchor = row_anchor(mean, largest);
    const bool shift = needs_shift(mean, largest);

    // 2) sums of d and of expm1(d) - d, or of exp(d - max)
    T sum_d = 0;
    T sum_exp = 0;
    for (int64_t k = lane; k < num_classes; k += kWidth) {
      const T value = load(row + k);
      sum_d += value - anchor;
      sum_exp += shift ? exp_fast(value - largest) : expm1_minus_x(value - anchor);
    }
    sum_d = Group<kWidth>::reduce(sum_d, Add(), shared);
    sum_exp = Group<kWidth>::reduce(sum_exp, Add(), shared);

    // 3) one thread writes the row
    if (lane == 0 && wanted < num_rows) {
      const UniformityRow<T> result = shift ? uniformity_row_shifted(anchor, largest, sum_d, sum_exp, K)
                                            : uniformity_row(anchor, largest, sum_d, sum_exp, K);
      per_sample[i] = result.loss;
      store_row_stats(result, row_stats + kRowStats * i);
    }
  }
}

// loss = sum_i w_i l_i / divisor in float64: one block, each thread a fixed set of rows, then a fixed tree; with the
// divisor known, the factor of every row's gradient.
template <typename T>
__global__ void __launch_bounds__(kReduceThreads) loss_kernel(const T* __restrict__ per_sample,  // [N]
                                                              const T* __restrict__ weight,      // [N] or null
                                                              int64_t num_rows, int64_t num_classes, bool by_weight,
                                                              T* __restrict__ row_stats,  // [N, kRowStats]
                                                              T* __restrict__ loss) {     // []
  __shared__ double shared[kReduceThreads / 32];
  double sum = 0;
  double weights = 0;
  for (int64_t i = threadIdx.x; i < num_rows; i += kReduceThreads) {
    const double w = weight == nullptr ? 1.0 : static_cast<double>(weight[i]);
    weights += w;
    sum += w == 0 ? 0 : w * per_sample[i];
  }
  sum = Group<kReduceThreads>::reduce(sum, Add(), shared);
  weights = Group<kReduceThreads>::reduce(weights, Add(), shared);
  const double divisor = by_weight ? weights : static_cast<double>(num_rows);
  if (threadIdx.x == 0) {
    *loss = static_cast<T>(divisor == 0 ? 0 : sum / divisor);
  }
  for (int64_t i = threadIdx.x; i < num_rows; i += kReduceThreads) {
    const double w = weight == nullptr ? 1.0 : static_cast<double>(weight[i]);
    store_row_scale(w, divisor, static_cast<T>(num_classes), row_stats + kRowStats * i);
  }
}

template <typename Logit, int kWidth, typename T = typename ComputeOf<Logit>::type>
__global__ void __launch_bounds__(kThreads) backward_kernel(const Logit* __restrict__ logits,  // [N, K]
                                                            int64_t row_stride, int64_t num_rows, int64_t num_classes,
                                                            const T* __restrict__ row_stats,    // [N, kRowStats]
                                                            const T* __restrict__ grad_loss,    // []
                                                            Logit* __restrict__ grad_logits) {  // [N, K] contiguous
  constexpr int kRowsPerBlock = kThreads / kWidth;
  const int lane = threadIdx.x % kWidth;
  const T upstream = *grad_loss;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWidth; i < num_rows;
       i += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const T* stats = row_stats + kRowStats * i;
    const T scale = upstream * stats[3];
    for (int64_t k = lane; k < num_classes; k += kWidth) {
      const T logit = load(logits + i * row_stride + k);
      const T gradient = uniformity_gradient(logit, stats[0], stats[1], stats[2], scale);
      store(grad_logits + i * num_classes + k, scale == T(0) ? T(0) : gradient);
    }
  }
}

template <typename Logit>
cudaError_t forward(const UniformityParams& p, cudaStream_t stream) {
  using T = typename ComputeOf<Logit>::type;
  if (p.num_rows > 0) {
    with_group_width(p.num_classes, [&](auto width) {
      forward_kernel<Logit, width.value><<<num_blocks<width.value>(p.num_rows), kThreads, 0, stream>>>(
          static_cast<const Logit*>(p.logits), p.row_stride, p.num_rows, p.num_classes, static_cast<T*>(p.per_sample),
          static_cast<T*>(p.row_stats));
    });
  }
  loss_kernel<T><<<1, kReduceThreads, 0, stream>>>(static_cast<const T*>(p.per_sample), static_cast<const T*>(p.weight),
                                                   p.num_rows, p.num_classes, p.by_weight, static_cast<T*>(p.row_stats),
                                                   static_cast<T*>(p.loss));
  return cudaGetLastError();
}

template <typename Logit>
cudaError_t backward(const UniformityParams& p, cudaStream_t stream) {
  using T = typename ComputeOf<Logit>::type;
  if (p.num_rows > 0) {
    with_group_width(p.num_classes, [&](auto width) {
      backward_kernel<Logit, width.value><<<num_blocks<width.value>(p.num_rows), kThreads, 0, stream>>>(
          static_cast<const Logit*>(p.logits), p.row_stride, p.num_rows, p.num_classes,
          static_cast<const T*>(p.row_stats), static_cast<const T*>(p.grad_loss), static_cast<Logit*>(p.grad_logits));
    });
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_uniformity_forward(const UniformityParams& params, cudaStream_t stream) {
  return with_logit_type(params.type, [&]<typename Logit>() { return forward<Logit>(params, stream); });
}

cudaError_t launch_uniformity_backward(const UniformityParams& params, cudaStream_t stream) {
  return with_logit_type(params.type, [&]<typename Logit>() { return backward<Logit>(params, stream); });
}

}  // namespace fastood
