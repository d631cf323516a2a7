// The passes along one row of logits, for the CPU. Part of cpu.cpp: everything here is compiled once per instruction set.
//
// Each loop is a function of its own over a stretch of logits: whole vectors, and once more a padded rest. Otherwise
// the compiler processes up to fifteen logits one by one, which at 100 classes takes as long as all others. Loops whose
// sums are captured by a lambda do not vectorise.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "row.h"

namespace fastood::outlier_loss::FASTOOD_CPU_CAPABILITY {
namespace {

// One AVX-512 vector of floats; two of AVX2. At most kRowTile of common/cpu_rows.h.
constexpr int64_t kLanes = 16;
// Sums along a row are carried in float over this many logits, then added up in double.
constexpr int64_t kChunk = 1024;

// The last num_classes % kLanes logits in the compute type, and padding.
template <typename Logit>
struct Rest {
  int64_t begin;
  int64_t count;
  alignas(64) Compute<Logit> value[kLanes];

  Rest(const Logit* logits, int64_t num_classes, Compute<Logit> padding)
      : begin(num_classes / kLanes * kLanes), count(num_classes - begin) {
    for (int64_t j = 0; j < kLanes; ++j) {
      value[j] = j < count ? to_compute(logits[begin + j]) : padding;
    }
  }
};

template <typename Logit, typename T = Compute<Logit>>
T max_of(const Logit* logits, int64_t count) {
  T largest = -INFINITY;
#pragma omp simd reduction(max : largest)
  for (int64_t k = 0; k < count; ++k) {
    const T value = to_compute(logits[k]);
    largest = largest < value ? value : largest;
  }
  return largest;
}

// NaN logits are skipped here; the sums that follow propagate them.
template <typename Logit, typename T = Compute<Logit>>
T row_max(const Logit* logits, int64_t num_classes) {
  const Rest<Logit> rest(logits, num_classes, T(-INFINITY));
  const T largest = max_of(logits, rest.begin);
  return rest.count == 0 ? largest : std::max(largest, max_of(rest.value, kLanes));
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
void add_softmax(const Logit* logits, int64_t count, T largest, RowSums<double>& sums) {
  T num_largest = 0;
  T others = 0;
#pragma omp simd reduction(+ : num_largest, others)
  for (int64_t k = 0; k < count; ++k) {
    const T value = to_compute(logits[k]);
    const T is_largest = value == largest ? T(1) : T(0);
    num_largest += is_largest;
    others += exp_fast(value - largest) - is_largest;  // exp(0) is one exactly
  }
  sums.deviation += num_largest;
  sums.exponential += others;
}

template <typename Logit, typename T = Compute<Logit>>
RowSums<double> softmax_sums(const Logit* logits, int64_t num_classes, T largest) {
  RowSums<double> sums{0, 0, 0};
  const Rest<Logit> rest(logits, num_classes, T(-INFINITY));
  for (int64_t begin = 0; begin < rest.begin; begin += kChunk) {
    add_softmax(logits + begin, std::min(kChunk, rest.begin - begin), largest, sums);
  }
  if (rest.count > 0) {
    add_softmax(rest.value, kLanes, largest, sums);
  }
  return sums;
}

template <typename T>
struct MeanAndMax {
  T mean;
  T largest;
};

template <typename Logit, typename T = Compute<Logit>>
double sum_of(const Logit* logits, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) {
    sum += to_compute(logits[k]);
  }
  return sum;
}

template <typename Logit, typename T = Compute<Logit>>
MeanAndMax<T> mean_and_max(const Logit* logits, int64_t num_classes) {
  const Rest<Logit> rest(logits, num_classes, T(-INFINITY));
  double sum = 0;
  T largest = max_of(rest.value, kLanes);
  for (int64_t j = 0; j < rest.count; ++j) {
    sum += rest.value[j];
  }
  for (int64_t begin = 0; begin < rest.begin; begin += kChunk) {
    const int64_t count = std::min(kChunk, rest.begin - begin);
    sum += sum_of(logits + begin, count);
    largest = std::max(largest, max_of(logits + begin, count));
  }
  return {static_cast<T>(sum) / static_cast<T>(num_classes), largest};
}

template <bool kShift, typename Logit, typename T = Compute<Logit>>
void add_uniformity_of(const Logit* logits, int64_t count, T anchor, T largest, RowSums<double>& sums) {
  T deviation = 0;
  T exponential = 0;
#pragma omp simd reduction(+ : deviation, exponential)
  for (int64_t k = 0; k < count; ++k) {
    RowSums<T> one{0, 0, 0};
    add_uniformity<kShift>(to_compute(logits[k]), anchor, largest, one);
    deviation += one.deviation;
    exponential += one.exponential;
  }
  sums.deviation += deviation;
  sums.exponential += exponential;
}

template <bool kShift, typename Logit, typename T = Compute<Logit>>
RowSums<double> uniformity_sums(const Logit* logits, int64_t num_classes, T anchor, T largest) {
  RowSums<double> sums{0, 0, 0};
  // A logit at the anchor does not contribute, unless shifted.
  const Rest<Logit> rest(logits, num_classes, anchor);
  for (int64_t begin = 0; begin < rest.begin; begin += kChunk) {
    add_uniformity_of<kShift>(logits + begin, std::min(kChunk, rest.begin - begin), anchor, largest, sums);
  }
  if (rest.count > 0) {
    add_uniformity_of<kShift>(rest.value, kShift ? rest.count : kLanes, anchor, largest, sums);
  }
  return sums;
}

template <typename Logit, typename T = Compute<Logit>>
RowValue<T> uniformity_value_shifted(const Logit* logits, int64_t num_classes, T mean, T largest) {
  const T anchor = row_anchor(mean, largest);
  const RowSums<double> sums = uniformity_sums<true>(logits, num_classes, anchor, largest);
  return uniformity_row_shifted(anchor, largest, sums, static_cast<T>(num_classes));
}

template <bool kShift, typename Logit, typename T = Compute<Logit>>
void add_entropy_of(const Logit* logits, int64_t count, T base, RowSums<double>& sums) {
  T deviation = 0;
  T exponential = 0;
  T product = 0;
#pragma omp simd reduction(+ : deviation, exponential, product)
  for (int64_t k = 0; k < count; ++k) {
    RowSums<T> one{0, 0, 0};
    add_entropy(to_compute(logits[k]), base, kShift, one);
    deviation += one.deviation;
    exponential += one.exponential;
    product += one.product;
  }
  sums.deviation += deviation;
  sums.exponential += exponential;
  sums.product += product;
}

template <bool kShift, typename Logit, typename T = Compute<Logit>>
RowSums<double> entropy_sums(const Logit* logits, int64_t num_classes, T base) {
  RowSums<double> sums{0, 0, 0};
  // A value that does not change any of the sums.
  const Rest<Logit> rest(logits, num_classes, kShift ? T(-INFINITY) : base);
  for (int64_t begin = 0; begin < rest.begin; begin += kChunk) {
    add_entropy_of<kShift>(logits + begin, std::min(kChunk, rest.begin - begin), base, sums);
  }
  if (rest.count > 0) {
    add_entropy_of<kShift>(rest.value, kLanes, base, sums);
  }
  return sums;
}

template <typename Logit, typename T = Compute<Logit>>
RowValue<T> maximum_value(const Logit* logits, int64_t num_classes) {
  const T largest = row_max(logits, num_classes);
  int64_t num_nan = 0;
  for (int64_t k = 0; k < num_classes; ++k) {
    const T value = to_compute(logits[k]);
    num_nan += value != value;
  }
  RowValue<T> row = maximum_row(largest, num_nan != 0);
  row.largest_class = first_class_of(logits, num_classes, largest);
  return row;
}

template <typename Logit, typename T = Compute<Logit>>
RowValue<T> norm_value(const Logit* features, int64_t num_features) {
  double sum = 0;
  for (int64_t begin = 0; begin < num_features; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, num_features);
    T chunk = 0;
#pragma omp simd reduction(+ : chunk)
    for (int64_t k = begin; k < end; ++k) {
      const T value = to_compute(features[k]);
      chunk += value * value;
    }
    sum += chunk;
  }
  RowValue<T> row;
  row.value = static_cast<T>(sum);
  return row;
}

template <RowTerm kTerm, typename Logit, typename T = Compute<Logit>>
void backward_part_of(const Logit* logits, int64_t count, RowGradient<T> gradient, Logit* grad) {
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) {
    grad[k] = FromCompute<Logit>::convert(gradient.template at<kTerm>(to_compute(logits[k])));
  }
}

// The last vector overlaps the one before: computing some gradients twice costs less than a scalar remainder.
template <RowTerm kTerm, typename Logit, typename T = Compute<Logit>>
void backward_row_of(const Logit* logits, int64_t num_classes, const RowGradient<T>& gradient, Logit* grad) {
  if (num_classes < kLanes) {
    return backward_part_of<kTerm>(logits, num_classes, gradient, grad);
  }
  backward_part_of<kTerm>(logits, num_classes / kLanes * kLanes, gradient, grad);
  if (num_classes % kLanes != 0) {
    backward_part_of<kTerm>(logits + num_classes - kLanes, kLanes, gradient, grad + num_classes - kLanes);
  }
}

// Zero where the row's scale is zero, without reading the logits.
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
}  // namespace fastood::outlier_loss::FASTOOD_CPU_CAPABILITY
