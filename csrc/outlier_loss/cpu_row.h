// The passes along one row of logits, for the CPU. Part of cpu.cpp: everything here is compiled once per instruction set.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "row.h"

namespace fastood::FASTOOD_CPU_CAPABILITY {
namespace {

// Sums along a row are carried in float over this many logits, then added up in double.
constexpr int64_t kChunk = 1024;

// Calls body(begin, end) on chunks of a row.
template <typename Body>
inline void for_chunks(int64_t num_classes, const Body& body) {
  for (int64_t begin = 0; begin < num_classes; begin += kChunk) {
    body(begin, std::min(begin + kChunk, num_classes));
  }
}

template <typename T>
struct MeanAndMax {
  T mean;
  T largest;
};

template <typename Logit, typename T = Compute<Logit>>
MeanAndMax<T> mean_and_max(const Logit* logits, int64_t num_classes) {
  double sum = 0;
  T largest = -INFINITY;
  for_chunks(num_classes, [&](int64_t begin, int64_t end) {
    T chunk_sum = 0;
    T chunk_largest = -INFINITY;
#pragma omp simd reduction(+ : chunk_sum) reduction(max : chunk_largest)
    for (int64_t k = begin; k < end; ++k) {
      const T value = to_compute(logits[k]);
      chunk_sum += value;
      chunk_largest = chunk_largest < value ? value : chunk_largest;
    }
    sum += chunk_sum;
    largest = largest < chunk_largest ? chunk_largest : largest;
  });
  return {static_cast<T>(sum) / static_cast<T>(num_classes), largest};
}

// NaN logits are passed over: what follows finds them.
template <typename Logit, typename T = Compute<Logit>>
T row_max(const Logit* logits, int64_t num_classes) {
  T largest = -INFINITY;
#pragma omp simd reduction(max : largest)
  for (int64_t k = 0; k < num_classes; ++k) {
    const T value = to_compute(logits[k]);
    largest = largest < value ? value : largest;
  }
  return largest;
}

template <typename Logit>
int64_t first_class_of(const Logit* logits, int64_t num_classes, Compute<Logit> value) {
  int64_t k = 0;
  while (k < num_classes - 1 && !(to_compute(logits[k]) == value)) {
    ++k;
  }
  return k;
}

template <typename Logit, typename T = Compute<Logit>>
RowValue<T> softmax_value(const Logit* logits, int64_t num_classes, bool wants_class) {
  const T largest = row_max(logits, num_classes);
  double num_largest = 0;
  double sum_others = 0;
  for_chunks(num_classes, [&](int64_t begin, int64_t end) {
    T chunk_largest = 0;
    T chunk_others = 0;
#pragma omp simd reduction(+ : chunk_largest, chunk_others)
    for (int64_t k = begin; k < end; ++k) {
      const T value = to_compute(logits[k]);
      const bool is_largest = value == largest;
      const T exponential = exp_fast(value - largest);
      chunk_largest += is_largest ? T(1) : T(0);
      chunk_others += is_largest ? T(0) : exponential;
    }
    num_largest += chunk_largest;
    sum_others += chunk_others;
  });
  RowValue<T> row = softmax_row(largest, static_cast<T>(num_largest), static_cast<T>(sum_others));
  if (wants_class) {
    row.largest_class = first_class_of(logits, num_classes, largest);
  }
  return row;
}

template <bool kEntropy, bool kShift, typename Logit, typename T = Compute<Logit>>
UniformitySums<double> uniformity_sums(const Logit* logits, int64_t num_classes, T anchor, T largest) {
  UniformitySums<double> sums{0, 0, 0};
  for_chunks(num_classes, [&](int64_t begin, int64_t end) {
    T deviation = 0;
    T exponential = 0;
    T product = 0;
#pragma omp simd reduction(+ : deviation, exponential, product)
    for (int64_t k = begin; k < end; ++k) {
      UniformitySums<T> one{0, 0, 0};
      add_logit<kEntropy, kShift>(to_compute(logits[k]), anchor, largest, one);
      deviation += one.deviation;
      exponential += one.exponential;
      product += one.product;
    }
    sums.deviation += deviation;
    sums.exponential += exponential;
    sums.product += product;
  });
  return sums;
}

template <bool kEntropy, typename Logit, typename T = Compute<Logit>>
RowValue<T> uniformity_value(const Logit* logits, int64_t num_classes) {
  const T K = static_cast<T>(num_classes);
  const auto [mean, largest] = mean_and_max(logits, num_classes);
  const T anchor = row_anchor(mean, largest);
  if (takes_shift<kEntropy>(mean, largest, K)) {
    const auto sums = uniformity_sums<kEntropy, true>(logits, num_classes, anchor, largest);
    return uniformity_row_shifted<kEntropy>(anchor, largest, sums, K);
  }
  const auto sums = uniformity_sums<kEntropy, false>(logits, num_classes, anchor, largest);
  return uniformity_row<kEntropy>(anchor, largest, sums, K);
}

template <typename Logit, typename T = Compute<Logit>>
RowValue<T> maximum_value(const Logit* logits, int64_t num_classes) {
  T largest = -INFINITY;
  T num_nan = 0;
#pragma omp simd reduction(max : largest) reduction(+ : num_nan)
  for (int64_t k = 0; k < num_classes; ++k) {
    const T value = to_compute(logits[k]);
    largest = largest < value ? value : largest;
    num_nan += value == value ? T(0) : T(1);
  }
  RowValue<T> row = maximum_row(largest, num_nan != T(0));
  row.largest_class = first_class_of(logits, num_classes, largest);
  return row;
}

template <typename Logit, typename T = Compute<Logit>>
RowValue<T> norm_value(const Logit* features, int64_t num_features) {
  double sum = 0;
  for_chunks(num_features, [&](int64_t begin, int64_t end) {
    T chunk = 0;
#pragma omp simd reduction(+ : chunk)
    for (int64_t k = begin; k < end; ++k) {
      const T value = to_compute(features[k]);
      chunk += value * value;
    }
    sum += chunk;
  });
  RowValue<T> row;
  row.value = static_cast<T>(sum);
  return row;
}

template <typename Logit>
RowValue<Compute<Logit>> row_value(const Logit* logits, int64_t num_classes, RowTerm term, bool wants_class) {
  switch (term) {
    case RowTerm::kUniformity:
      return uniformity_value<false>(logits, num_classes);
    case RowTerm::kEntropy:
      return uniformity_value<true>(logits, num_classes);
    case RowTerm::kMaximum:
      return maximum_value(logits, num_classes);
    case RowTerm::kNorm:
      return norm_value(logits, num_classes);
    default:
      return softmax_value(logits, num_classes, wants_class);
  }
}

template <RowTerm term, typename Logit, typename T = Compute<Logit>>
void backward_row_of(const Logit* logits, int64_t num_classes, const RowGradient<T>& gradient, Logit* grad) {
#pragma omp simd
  for (int64_t k = 0; k < num_classes; ++k) {
    grad[k] = FromCompute<Logit>::convert(gradient.template at<term>(to_compute(logits[k])));
  }
}

// Zero without a look at the logits where the row's scale is.
template <typename Logit, typename T = Compute<Logit>>
void backward_row(const Logit* logits, int64_t num_classes, const RowGradient<T>& gradient, Logit* grad) {
  if (gradient.scale == T(0)) {
    std::fill_n(grad, num_classes, FromCompute<Logit>::convert(T(0)));
  } else if (gradient.term == RowTerm::kUniformity) {
    backward_row_of<RowTerm::kUniformity>(logits, num_classes, gradient, grad);
  } else if (gradient.term == RowTerm::kEntropy) {
    backward_row_of<RowTerm::kEntropy>(logits, num_classes, gradient, grad);
  } else if (gradient.term == RowTerm::kNorm) {
    backward_row_of<RowTerm::kNorm>(logits, num_classes, gradient, grad);
  } else {
    backward_row_of<RowTerm::kSoftmax>(logits, num_classes, gradient, grad);
  }
  if (gradient.target != kNoTarget) {
    grad[gradient.target] = FromCompute<Logit>::convert(gradient.at_target(to_compute(logits[gradient.target])));
  }
}

}  // namespace
}  // namespace fastood::FASTOOD_CPU_CAPABILITY
