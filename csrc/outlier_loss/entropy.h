// KL(f || U) of a row, without cancellation: Li & Vasconcelos 2020, section 5.4.
//
//     KL(f || U) = sum_k f_k log f_k + log K
//
// With anchor, d_k, delta, q and lambda as in uniformity.h, and r = mean(d expm1(d)) >= 0,
//
//     KL(f || U) = (delta + r) / (1 + q + delta) - lambda
//
// for rows near uniform; r and lambda are small there, of the size of the result. Where one logit outweighs the K - 1
// others together they are not, and sums shifted by the largest logit are the accurate ones: with b_k = v_k - max v,
// S = sum exp(b) and P = sum b exp(b), to which the largest logit itself adds nothing,
//
//     sum_k f_k log f_k = P / S - log S.
#pragma once

#include "../common/uniformity.h"

namespace fastood::outlier_loss {

template <typename T>
FASTOOD_HD bool entropy_needs_shift(T mean, T largest, T num_classes) {
  return needs_shift(mean, largest) || largest - mean > log_fast(num_classes) + T(1);
}

// Subtracted from every logit, leaving d_k or b_k.
template <typename T>
FASTOOD_HD T entropy_base(T mean, T largest, T num_classes) {
  return entropy_needs_shift(mean, largest, num_classes) ? largest : mean;
}

// One logit's share of the sums. At a masked logit b = -inf, and b exp(b) must be zero.
template <typename T>
FASTOOD_HD void add_entropy(T logit, T base, bool shift, RowSums<T>& sums) {
  const T difference = logit - base;
  const T d = difference < ExpTraits<T>::kMin ? ExpTraits<T>::kMin : difference;
  const ExpParts<T> e = exp_parts(d);
  const T expm1 = e.scale * (e.remainder + e.tail) + (e.scale - T(1));
  const T exponential = e.scale + e.scale * (e.remainder + e.tail);
  sums.deviation += d;
  sums.exponential += shift ? exponential : expm1_minus_x(d, e);
  sums.product += d * (shift ? exponential : expm1);
}

// Without a branch, as row_in_either_form.
template <typename T>
FASTOOD_HD RowValue<T> entropy_row(T mean, T largest, const RowSums<double>& sums, T num_classes) {
  const double delta = sums.deviation / num_classes;
  const double mean_expm1 = sums.exponential / num_classes + delta;
  const double lambda = log1p_fast(mean_expm1);
  const double value = (delta + sums.product / num_classes) / (1 + mean_expm1) - lambda;
  RowValue<T> row = row_in_either_form(mean, largest, lambda, value, num_classes);

  const double log_sum = log_fast(sums.exponential);
  const double centre = sums.product / sums.exponential - log_sum;
  const bool shift = entropy_needs_shift(mean, largest, num_classes);
  row.anchor = shift ? largest : row.anchor;
  row.lambda = shift ? static_cast<T>(log_sum) : row.lambda;
  row.uniform = shift ? T(1) / num_classes : row.uniform;
  row.centre = shift ? static_cast<T>(centre) : row.centre;
  row.value = shift ? static_cast<T>(centre + log_fast(static_cast<double>(num_classes))) : row.value;
  return row;
}

// d KL(f || U) / d v_k = f_k (log f_k - sum f log f), times K uniform; 0 at a masked logit.
template <typename T>
FASTOOD_HD T entropy_gradient(T x, T centre) {
  return exp_fast(x) * ((x < ExpTraits<T>::kMin ? ExpTraits<T>::kMin : x) - centre);
}

}  // namespace fastood::outlier_loss
