// The uniformity loss of one row of logits (Li & Vasconcelos 2020, eq. 5), without cancellation.
//
//     l(v) = -1/K sum_k log f_k(v) - log K = log mean_k exp(v_k) - mean_k v_k = KL(U || f)
//
// With a row anchor a (the rounded mean), d_k = v_k - a, delta = mean d and q = mean(expm1(d) - d) >= 0,
//
//     lambda = log mean exp(d) = log1p(q + delta),   l = lambda - delta,   f_k - 1/K = expm1(d_k - lambda) / K
//
// hold exactly. log_softmax computes l as a difference of numbers near log K and loses every digit of it near the
// uniform point, which is where a trained network puts its background rows; here q is a sum of positive terms.
#pragma once

#include "../common/exp.h"

namespace fastood {

// `loss` is l; the others are what the backward pass needs, in one of two forms of x_k = v_k - anchor - lambda:
// x = log(K f) and uniform = 1 for rows near uniform, x = log f and uniform = 1/K for rows where one logit stands out.
// Each keeps the digits of the f_k that matter there, and f_k - 1/K = (exp(x_k) - uniform) / (K uniform) in both.
template <typename T>
struct UniformityRow {
  T anchor;
  T lambda;
  T uniform;
  T loss;
};

// Columns of the row statistics that forward hands to backward: anchor, lambda, uniform, and the factor of
// exp(x_k) - uniform in the gradient of the loss, w_i / (divisor K uniform), once the divisor is known.
constexpr int kRowStats = 4;

template <typename T>
FASTOOD_HD void store_row_stats(const UniformityRow<T>& row, T* stats) {
  stats[0] = row.anchor;
  stats[1] = row.lambda;
  stats[2] = row.uniform;
}

template <typename T>
FASTOOD_HD void store_row_scale(double weight, double divisor, T num_classes, T* stats) {
  stats[3] = divisor == 0 ? T(0) : static_cast<T>(weight / (divisor * num_classes * stats[2]));
}

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

// From sum_d = sum_k d_k and sum_q = sum_k (expm1(d_k) - d_k). The last subtraction is done in double: delta, which is
// what rounding the mean to an anchor left over, can exceed the loss.
template <typename T>
FASTOOD_HD UniformityRow<T> uniformity_row(T anchor, T largest, double sum_d, double sum_q, T num_classes) {
  const double delta = sum_d / num_classes;
  const double mean_expm1 = sum_q / num_classes + delta;
  const double lambda = log1p_fast(mean_expm1);
  const T loss = static_cast<T>(lambda - delta);
  const T largest_deviation = largest - anchor;
  if (largest_deviation > T(1)) {
    const T sum_shifted = static_cast<T>(1 + mean_expm1) * exp_fast(-largest_deviation) * num_classes;
    return {largest, log_fast(sum_shifted), T(1) / num_classes, loss};
  }
  return {anchor, static_cast<T>(lambda), T(1), loss};
}

// From sum_shifted = sum_k exp(v_k - largest) instead of sum_q.
template <typename T>
FASTOOD_HD UniformityRow<T> uniformity_row_shifted(T anchor, T largest, double sum_d, double sum_shifted,
                                                   T num_classes) {
  const T delta = static_cast<T>(sum_d) / num_classes;
  const T mean_shifted = static_cast<T>(sum_shifted) / num_classes;
  const T loss = (log_fast(mean_shifted) + (largest - anchor)) - delta;
  return {largest, log_fast(static_cast<T>(sum_shifted)), T(1) / num_classes, loss};
}

// d loss / d v_k for row statistics (anchor, lambda, uniform) and their factor, times the upstream gradient.
template <typename T>
FASTOOD_HD T uniformity_gradient(T logit, T anchor, T lambda, T uniform, T scale) {
  return exp_minus((logit - anchor) - lambda, uniform) * scale;
}

}  // namespace fastood
