// How far a row of logits is from uniform, without cancellation: Li & Vasconcelos 2020, eq. 5 and section 5.4.
//
//     uniformity   KL(U || f) = -1/K sum_k log f_k - log K = log mean_k exp(v_k) - mean_k v_k
//     entropy      KL(f || U) = sum_k f_k log f_k + log K
//
// With a row anchor a (the rounded mean), d_k = v_k - a, delta = mean d, q = mean(expm1(d) - d) >= 0 and
// r = mean(d expm1(d)) >= 0,
//
//     lambda = log mean exp(d) = log1p(q + delta),    KL(U || f) = lambda - delta,    f_k - 1/K = expm1(d_k - lambda) / K
//     KL(f || U) = (delta + r) / (1 + q + delta) - lambda
//
// hold exactly. log_softmax computes both as a difference of numbers near log K and loses every digit of it near the
// uniform point, which is where a trained network puts its background rows; here q and r are sums of positive terms.
//
// The statistics take one of two forms of x_k = v_k - anchor - lambda: x = log(K f) and uniform = 1 for rows near uniform,
// x = log f and uniform = 1/K for rows where one logit stands out. Each keeps the digits of the f_k that matter there, and
// f_k - 1/K = (exp(x_k) - uniform) / (K uniform) in both.
#pragma once

#include "../common/exp.h"
#include "row_value.h"

namespace fastood {

// The rounded mean; where that is not finite (a masked logit of -inf, an overflowing sum), the largest logit.
template <typename T>
FASTOOD_HD T row_anchor(T mean, T largest) {
  return mean - mean == T(0) ? mean : largest;
}

// Whether sums of exp(d_k) must be shifted by their largest term: they would overflow (e^60 * 2^30 < 2^127), or the mean
// did, or some d_k is -inf and q would be +inf beside a delta of -inf. Such rows are never near uniform, so nothing
// cancels.
template <typename T>
FASTOOD_HD bool needs_shift(T mean, T largest) {
  return !(mean - mean == T(0) && largest - mean <= T(60));
}

// Also where one logit outweighs the K - 1 others together, for the entropy of many classes: r and lambda are large there,
// and what rounding their sums does to the difference is not small. Sums of few terms are exact enough.
template <bool kEntropy, typename T>
FASTOOD_HD bool takes_shift(T mean, T largest, T num_classes) {
  return needs_shift(mean, largest) ||
         (kEntropy && num_classes > T(32) && largest - mean > log_fast(num_classes) + T(1));
}

// Sums over a row, d_k = v_k - anchor.
template <typename T>
struct UniformitySums {
  T deviation;    // d_k
  T exponential;  // expm1(d_k) - d_k; where shifted, exp(v_k - largest)
  T product;      // d_k expm1(d_k); where shifted, (v_k - largest) exp(v_k - largest). For the entropy alone
};

// One logit's share of the sums.
template <bool kEntropy, bool kShift, typename T>
FASTOOD_HD void add_logit(T logit, T anchor, T largest, UniformitySums<T>& sums) {
  const T d = logit - anchor;
  sums.deviation += d;
  if constexpr (kShift) {
    const T below = logit - largest;
    const T exponential = exp_fast(below);
    sums.exponential += exponential;
    if constexpr (kEntropy) {  // f log f -> 0 at a masked logit, where below is -inf
      sums.product += (below < ExpTraits<T>::kMin ? ExpTraits<T>::kMin : below) * exponential;
    }
  } else {
    const ExpParts<T> e = exp_parts(d);
    sums.exponential += expm1_minus_x(d, e);
    if constexpr (kEntropy) {
      sums.product += d * expm1_of(e);
    }
  }
}

// The row near uniform or not, from sums of d. The last subtractions are done in double: delta, which is what rounding
// the mean to an anchor left over, can exceed the loss.
template <bool kEntropy, typename T>
FASTOOD_HD RowValue<T> uniformity_row(T anchor, T largest, const UniformitySums<double>& sums, T num_classes) {
  const double delta = sums.deviation / num_classes;
  const double mean_expm1 = sums.exponential / num_classes + delta;
  const double lambda = log1p_fast(mean_expm1);
  double value = lambda - delta;
  if constexpr (kEntropy) {
    value = (delta + sums.product / num_classes) / (1 + mean_expm1) - lambda;
  }
  // Chosen without a branch, so that the compiler can take many rows at once.
  const double log_classes = log_fast(static_cast<double>(num_classes));
  const T largest_deviation = largest - anchor;
  const bool stands_out = largest_deviation > T(1);
  RowValue<T> row;
  row.anchor = stands_out ? largest : anchor;
  row.lambda = static_cast<T>(stands_out ? (lambda + log_classes) - largest_deviation : lambda);
  row.uniform = stands_out ? T(1) / num_classes : T(1);
  row.value = static_cast<T>(value);
  row.centre = static_cast<T>(stands_out ? value - log_classes : value);
  return row;
}

// The row where shifted.
template <bool kEntropy, typename T>
FASTOOD_HD RowValue<T> uniformity_row_shifted(T anchor, T largest, const UniformitySums<double>& sums, T num_classes) {
  const double log_classes = log_fast(static_cast<double>(num_classes));
  const double lambda = log_fast(sums.exponential);
  RowValue<T> row;
  row.anchor = largest;
  row.lambda = static_cast<T>(lambda);
  row.uniform = T(1) / num_classes;
  if constexpr (kEntropy) {
    const double centre = sums.product / sums.exponential - lambda;
    row.centre = static_cast<T>(centre);
    row.value = static_cast<T>(centre + log_classes);
  } else {
    const T delta = static_cast<T>(sums.deviation) / num_classes;
    row.value = (static_cast<T>(lambda - log_classes) + (largest - anchor)) - delta;
  }
  return row;
}

// d KL(f || U) / d v_k = f_k (log f_k - sum f log f), times K uniform; 0 at a masked logit.
template <typename T>
FASTOOD_HD T entropy_gradient(T x, T centre) {
  return exp_fast(x) * ((x < ExpTraits<T>::kMin ? ExpTraits<T>::kMin : x) - centre);
}

}  // namespace fastood
