// KL(U || f) of a row, without cancellation: Li & Vasconcelos 2020, eq. 5.
//
//     l(v) = KL(U || f) = -1/K sum_k log f_k - log K = log mean_k exp(v_k) - mean_k v_k
//
// With a row anchor a (the rounded mean), d_k = v_k - a, delta = mean d and q = mean(expm1(d) - d) >= 0,
//
//     lambda = log mean exp(d) = log1p(q + delta),   l = lambda - delta,   f_k - 1/K = expm1(d_k - lambda) / K
//
// hold exactly. log_softmax computes l as a difference of numbers near log K and loses all its digits near uniform
// predictions, to which training moves background rows; here q is a sum of positive terms.
//
// The statistics take one of two forms of x_k = v_k - anchor - lambda: x = log(K f) and uniform = 1 for rows near uniform,
// x = log f and uniform = 1/K for rows with one dominant logit. Each form is accurate for the f_k of its rows, and
// f_k - 1/K = (exp(x_k) - uniform) / (K uniform) in both.
#pragma once

#include "exp.h"
#include "row_value.h"

namespace fastood {

// The rounded mean; where that is not finite (a masked logit of -inf, an overflowing sum), the largest logit.
template <typename T>
FASTOOD_HD T row_anchor(T mean, T largest) {
  return mean - mean == T(0) ? mean : largest;
}

// Whether sums of exp(d_k) must be shifted by their largest term: they would overflow (e^60 * 2^30 < 2^127), or the mean
// did, or some d_k is -inf, where q would be +inf and delta -inf. Such rows are not near uniform, so that the
// difference does not cancel.
template <typename T>
FASTOOD_HD bool needs_shift(T mean, T largest) {
  return !(mean - mean == T(0) && largest - mean <= T(60));
}

// The contribution of one logit to the sums; kShift where needs_shift.
template <bool kShift, typename T>
FASTOOD_HD void add_uniformity(T logit, T anchor, T largest, RowSums<T>& sums) {
  const T d = logit - anchor;
  sums.deviation += d;
  sums.exponential += kShift ? exp_fast(logit - largest) : expm1_minus_x(d);
}

// The row in x = log(K f) or, for a dominant logit, x = log f; chosen without a branch, so that the compiler can
// vectorise over rows. lambda is log mean exp(d).
template <typename T>
FASTOOD_HD RowValue<T> row_in_either_form(T anchor, T largest, double lambda, double value, T num_classes) {
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

// The last subtraction is done in double: delta, the rounding error of the anchor, can exceed the loss.
template <typename T>
FASTOOD_HD RowValue<T> uniformity_row(T anchor, T largest, const RowSums<double>& sums, T num_classes) {
  const double delta = sums.deviation / num_classes;
  const double lambda = log1p_fast(sums.exponential / num_classes + delta);
  return row_in_either_form(anchor, largest, lambda, lambda - delta, num_classes);
}

// The result of a row where needs_shift.
template <typename T>
FASTOOD_HD RowValue<T> uniformity_row_shifted(T anchor, T largest, const RowSums<double>& sums, T num_classes) {
  const double lambda = log_fast(sums.exponential);
  const T delta = static_cast<T>(sums.deviation) / num_classes;
  RowValue<T> row;
  row.anchor = largest;
  row.lambda = static_cast<T>(lambda);
  row.uniform = T(1) / num_classes;
  row.value = (static_cast<T>(lambda - log_fast(static_cast<double>(num_classes))) + (largest - anchor)) - delta;
  return row;
}

}  // namespace fastood
