// Uniformity loss on the CPU. Compiled once per instruction set: see common/cpu_capability.h.
//
// Bytes: forward reads N K logits, backward reads them and writes the gradient. Operations: one exponential per logit and
// pass, about 25 vector instructions; with AVX-512 both passes are bound by memory from a few MiB on.
// Two layouts of the same maths: along a row for many classes, across 16 rows for few (a row of 10 would leave most of a
// vector empty).
#include "cpu.h"

#include <algorithm>
#include <cmath>

#include "math.h"

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

namespace fastood::FASTOOD_CPU_CAPABILITY {
namespace {

// One AVX-512 vector of floats; two of AVX2. kRowTile of the op.
constexpr int64_t kLanes = 16;
// Up to here rows are taken kLanes at a time; the tile of 32 x 16 floats stays in the level-1 cache.
constexpr int64_t kMaxClassesAcrossRows = 32;
// Sums along a row are carried in float over this many logits, then added up in double.
constexpr int64_t kChunk = 1024;

template <typename T>
struct RowSums {
  T sum;
  T largest;
};

template <typename Logit, typename T = Compute<Logit>>
RowSums<T> sum_and_max(const Logit* logits, int64_t num_classes) {
  double sum = 0;
  T largest = -INFINITY;
  for (int64_t begin = 0; begin < num_classes; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, num_classes);
    T chunk_sum = 0;
#pragma omp simd reduction(+ : chunk_sum) reduction(max : largest)
    for (int64_t k = begin; k < end; ++k) {
      const T value = to_compute(logits[k]);
      chunk_sum += value;
      largest = largest < value ? value : largest;
    }
    sum += chunk_sum;
  }
  return {static_cast<T>(sum), largest};
}

template <typename Logit, typename T = Compute<Logit>>
UniformityRow<T> forward_row(const Logit* logits, int64_t num_classes) {
  const T K = static_cast<T>(num_classes);
  const RowSums<T> row = sum_and_max(logits, num_classes);
  const T mean = row.sum / K;
  const T anchor = row_anchor(mean, row.largest);
  const bool shift = needs_shift(mean, row.largest);
  double sum_d = 0;
  double sum_exp = 0;
  for (int64_t begin = 0; begin < num_classes; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, num_classes);
    T chunk_d = 0;
    T chunk_exp = 0;
    if (shift) {
#pragma omp simd reduction(+ : chunk_d, chunk_exp)
      for (int64_t k = begin; k < end; ++k) {
        const T value = to_compute(logits[k]);
        chunk_d += value - anchor;
        chunk_exp += exp_fast(value - row.largest);
      }
    } else {
#pragma omp simd reduction(+ : chunk_d, chunk_exp)
      for (int64_t k = begin; k < end; ++k) {
        const T d = to_compute(logits[k]) - anchor;
        chunk_d += d;
        chunk_exp += expm1_minus_x(d);
      }
    }
    sum_d += chunk_d;
    sum_exp += chunk_exp;
  }
  return shift ? uniformity_row_shifted(anchor, row.largest, sum_d, sum_exp, K)
               : uniformity_row(anchor, row.largest, sum_d, sum_exp, K);
}

// kLanes rows at once, lane by lane the same sums as forward_row.
template <typename Logit, typename T = Compute<Logit>>
void forward_across_rows(const Logit* logits, int64_t row_stride, int64_t num_classes, T* per_sample, T* row_stats) {
  alignas(64) T tile[kMaxClassesAcrossRows * kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    for (int64_t k = 0; k < num_classes; ++k) {
      tile[k * kLanes + lane] = to_compute(logits[lane * row_stride + k]);
    }
  }
  const T K = static_cast<T>(num_classes);
  alignas(64) T mean[kLanes] = {};
  alignas(64) T largest[kLanes];
  alignas(64) T anchor[kLanes];
  alignas(64) T sum_d[kLanes] = {};
  alignas(64) T sum_q[kLanes] = {};
  std::fill_n(largest, kLanes, T(-INFINITY));
  for (int64_t k = 0; k < num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = tile[k * kLanes + lane];
      mean[lane] += value;
      largest[lane] = largest[lane] < value ? value : largest[lane];
    }
  }
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    mean[lane] /= K;
    anchor[lane] = row_anchor(mean[lane], largest[lane]);
  }
  for (int64_t k = 0; k < num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T d = tile[k * kLanes + lane] - anchor[lane];
      sum_d[lane] += d;
      sum_q[lane] += expm1_minus_x(d);
    }
  }
  // The usual row for all lanes at once; a lane that needs the other form is done again by itself.
  alignas(64) T lambda[kLanes];
  alignas(64) T uniform[kLanes];
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const UniformityRow<T> row = uniformity_row(anchor[lane], largest[lane], sum_d[lane], sum_q[lane], K);
    per_sample[lane] = row.loss;
    anchor[lane] = row.anchor;
    lambda[lane] = row.lambda;
    uniform[lane] = row.uniform;
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    UniformityRow<T> row{anchor[lane], lambda[lane], uniform[lane], per_sample[lane]};
    if (needs_shift(mean[lane], largest[lane])) {
      row = forward_row(logits + lane * row_stride, num_classes);
      per_sample[lane] = row.loss;
    }
    store_row_stats(row, row_stats + kRowStats * lane);
  }
}

// Zero without a look at the logits where the weight of the row is zero.
template <typename Logit, typename T = Compute<Logit>>
void backward_row(const Logit* logits, int64_t num_classes, const T* stats, double grad_loss, Logit* grad) {
  const T scale = static_cast<T>(grad_loss * stats[3]);
  if (scale == T(0)) {
    std::fill_n(grad, num_classes, FromCompute<Logit>::convert(T(0)));
    return;
  }
  const T anchor = stats[0];
  const T lambda = stats[1];
  const T uniform = stats[2];
#pragma omp simd
  for (int64_t k = 0; k < num_classes; ++k) {
    const T logit = to_compute(logits[k]);
    grad[k] = FromCompute<Logit>::convert(uniformity_gradient(logit, anchor, lambda, uniform, scale));
  }
}

// kLanes rows at once: their logits are laid out flat, so that the exponentials fill whole vectors.
template <typename Logit, typename T = Compute<Logit>>
void backward_across_rows(const Logit* logits, int64_t row_stride, int64_t num_classes, const T* row_stats,
                          double grad_loss, Logit* grad) {
  alignas(64) T x[kMaxClassesAcrossRows * kLanes];
  alignas(64) T uniform[kMaxClassesAcrossRows * kLanes];
  alignas(64) T scale[kMaxClassesAcrossRows * kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const T* stats = row_stats + kRowStats * lane;
    const T row_scale = static_cast<T>(grad_loss * stats[3]);
    for (int64_t k = 0; k < num_classes; ++k) {
      const T logit = to_compute(logits[lane * row_stride + k]);
      x[lane * num_classes + k] = row_scale == T(0) ? T(0) : (logit - stats[0]) - stats[1];
      uniform[lane * num_classes + k] = stats[2];
      scale[lane * num_classes + k] = row_scale;
    }
  }
#pragma omp simd
  for (int64_t j = 0; j < kLanes * num_classes; ++j) {
    grad[j] = FromCompute<Logit>::convert(exp_minus(x[j], uniform[j]) * scale[j]);
  }
}

}  // namespace

template <typename Logit>
void uniformity_forward(const Logit* logits, int64_t row_stride, int64_t num_rows, int64_t num_classes,
                        Compute<Logit>* per_sample, Compute<Logit>* row_stats) {
  int64_t i = 0;
  if (num_classes <= kMaxClassesAcrossRows) {
    for (; i + kLanes <= num_rows; i += kLanes) {
      forward_across_rows(logits + i * row_stride, row_stride, num_classes, per_sample + i, row_stats + kRowStats * i);
    }
  }
  for (; i < num_rows; ++i) {
    const auto row = forward_row(logits + i * row_stride, num_classes);
    per_sample[i] = row.loss;
    store_row_stats(row, row_stats + kRowStats * i);
  }
}

template <typename T>
void uniformity_scale(const T* weight, int64_t num_rows, int64_t num_classes, double divisor, T* row_stats) {
  for (int64_t i = 0; i < num_rows; ++i) {
    const double w = weight == nullptr ? 1.0 : weight[i];
    store_row_scale(w, divisor, static_cast<T>(num_classes), row_stats + kRowStats * i);
  }
}

template <typename Logit>
void uniformity_backward(const Logit* logits, int64_t row_stride, int64_t num_rows, int64_t num_classes,
                         const Compute<Logit>* row_stats, double grad_loss, Logit* grad_logits) {
  int64_t i = 0;
  if (num_classes <= kMaxClassesAcrossRows) {
    for (; i + kLanes <= num_rows; i += kLanes) {
      backward_across_rows(logits + i * row_stride, row_stride, num_classes, row_stats + kRowStats * i, grad_loss,
                           grad_logits + i * num_classes);
    }
  }
  for (; i < num_rows; ++i) {
    backward_row(logits + i * row_stride, num_classes, row_stats + kRowStats * i, grad_loss,
                 grad_logits + i * num_classes);
  }
}

#define FASTOOD_INSTANTIATE(Logit)                                                                                    \
  template void uniformity_forward<Logit>(const Logit*, int64_t, int64_t, int64_t, Compute<Logit>*, Compute<Logit>*); \
  template void uniformity_backward<Logit>(const Logit*, int64_t, int64_t, int64_t, const Compute<Logit>*, double,    \
                                           Logit*);
FASTOOD_INSTANTIATE(float)
FASTOOD_INSTANTIATE(double)
FASTOOD_INSTANTIATE(BFloat16)
FASTOOD_INSTANTIATE(Float16)
#undef FASTOOD_INSTANTIATE
template void uniformity_scale<float>(const float*, int64_t, int64_t, double, float*);
template void uniformity_scale<double>(const double*, int64_t, int64_t, double, double*);

}  // namespace fastood::FASTOOD_CPU_CAPABILITY
