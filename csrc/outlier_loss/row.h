// One row of any loss: from the sums over its logits to its loss and its statistics.
#pragma once

#include <cmath>

#include "../common/uniformity.h"
#include "entropy.h"
#include "losses.h"

namespace fastood::outlier_loss {

// From the largest logit, how many logits equal it and the sum of exp(v_k - largest) over the others, which keeps the
// digits of the loss of a confident row. NaN where a logit is NaN or +inf, or all are -inf.
template <typename T>
FASTOOD_HD RowValue<T> softmax_row(T largest, T num_largest, T sum_others) {
  RowValue<T> row;
  row.anchor = largest;
  row.lambda = log1p_fast((num_largest - T(1)) + sum_others) + (largest - largest);
  return row;
}

// The largest logit alone; NaN where a logit is NaN or +inf.
template <typename T>
FASTOOD_HD RowValue<T> maximum_row(T largest, bool any_nan) {
  RowValue<T> row;
  row.anchor = any_nan || largest == T(INFINITY) ? T(NAN) : largest;
  return row;
}

// Mohseni 2020, Algorithm 1: the largest logit's class if it is a reject class, else a random reject class.
FASTOOD_HD int64_t pseudo_label(int64_t largest_class, int64_t num_classes, int64_t num_reject, double uniform_draw) {
  const int64_t first = num_classes - num_reject;
  if (largest_class >= first) {
    return largest_class;
  }
  // An invalid draw (NaN or outside [0, 1)) is clamped to a reject class.
  const double draw = uniform_draw > 0 ? (uniform_draw < 1 ? uniform_draw : 1) : 0;
  const int64_t chosen = static_cast<int64_t>(draw * static_cast<double>(num_reject));
  return first + (chosen < num_reject ? chosen : num_reject - 1);
}

// Wu 2023, eq. 0.13 has no value where a logit reaches 0 (a feature on a class mean), and logits there are <= 0: above
// -2^-24 the loss and its slope stay what they are at -2^-24, 16.6 and 1.7e7.
constexpr double kIceClamp = -0x1p-24;

// -log(1 - exp(h)) for h < 0: by expm1 near zero and by log1p elsewhere, where the other form would cancel.
template <typename T>
FASTOOD_HD T ice_loss(T h) {
  h = h > T(kIceClamp) ? T(kIceClamp) : h;
  return h > T(-0.6931472) ? -std::log(-std::expm1(h)) : -std::log1p(-std::exp(h));
}

// Its derivative, exp(h) / (1 - exp(h)).
template <typename T>
FASTOOD_HD T ice_slope(T h) {
  h = h > T(kIceClamp) ? T(kIceClamp) : h;
  return T(1) / std::expm1(-h);
}

// -log(1 - s(v)) for s the sigmoid, which is log(1 + exp(v)); -log s(v) is that of -v.
template <typename T>
FASTOOD_HD T softplus(T v) {
  return (v > T(0) ? v : T(0)) + std::log1p(std::exp(v > T(0) ? -v : v));
}

// Its derivative, s(v).
template <typename T>
FASTOOD_HD T sigmoid(T v) {
  const T small = std::exp(v > T(0) ? -v : v);
  return (v > T(0) ? T(1) : small) / (T(1) + small);
}

// Whether `extra` belongs to the target's logit, and so is weighted like the row; else it is part of every x_k's term.
FASTOOD_HD constexpr bool has_target_term(RowTerm term) {
  return term == RowTerm::kSoftmax || term == RowTerm::kMaximum;
}

template <typename T>
struct FinishedRow {
  T loss;
  T scale;
  T extra;
  int64_t target;
};

// An in-distribution row: cross-entropy plus the term of the loss. target_logit is v_y.
template <typename T>
FASTOOD_HD FinishedRow<T> finish_id(const LossSettings& settings, const RowValue<T>& row, int64_t target,
                                    T target_logit) {
  const T weight = static_cast<T>(settings.weight);
  const T margin = static_cast<T>(settings.margin_id);
  if (settings.loss == OutlierLoss::kMagnitude) {
    const T norm = std::sqrt(row.value);
    const T short_of = norm > margin ? T(0) : margin - norm;
    // The norm has no slope at zero; NaN propagates.
    return {short_of * short_of, norm == T(0) ? T(0) : -T(2) * short_of / norm, T(0), 0};
  }
  const T cross_entropy = row.lambda + (row.anchor - target_logit);
  const T energy = -(row.anchor + row.lambda);
  switch (settings.loss) {
    case OutlierLoss::kEnergyMargin: {
      const T excess = energy < margin ? T(0) : energy - margin;
      return {cross_entropy + weight * excess * excess, T(1) - T(2) * weight * excess, T(1), target};
    }
    case OutlierLoss::kEnergy:
      return {cross_entropy + weight * energy, T(1) - weight, T(1), target};
    case OutlierLoss::kIce:
      return {cross_entropy - weight * target_logit, T(1), T(1) + weight, target};
    case OutlierLoss::kSigmoid:
      return {cross_entropy + weight * softplus(-target_logit), T(1), T(1) + weight * sigmoid(-target_logit), target};
    default:
      return {cross_entropy, T(1), T(1), target};
  }
}

// A background row. target is the pseudo-label of kRejectClass and target_logit its logit.
template <typename T>
FASTOOD_HD FinishedRow<T> finish_background(const LossSettings& settings, const RowValue<T>& row, T num_classes,
                                            int64_t target, T target_logit) {
  switch (settings.loss) {
    case OutlierLoss::kUniformity:
      return {row.value, T(1) / (num_classes * row.uniform), row.uniform, kNoTarget};
    case OutlierLoss::kEntropy:
      return {row.value, T(1) / (num_classes * row.uniform), row.centre, kNoTarget};
    case OutlierLoss::kEnergyMargin: {
      const T energy = -(row.anchor + row.lambda);
      const T margin = static_cast<T>(settings.margin_background);
      const T short_of = energy > margin ? T(0) : margin - energy;
      return {short_of * short_of, T(2) * short_of, T(0), kNoTarget};
    }
    case OutlierLoss::kEnergy:
      return {row.anchor + row.lambda, T(1), T(0), kNoTarget};
    case OutlierLoss::kRejectClass:
      return {row.lambda + (row.anchor - target_logit), T(1), T(1), kNoTarget - 1 - target};
    case OutlierLoss::kSigmoid:
      return {softplus(row.anchor), T(0), -sigmoid(row.anchor), kNoTarget - 1 - row.largest_class};
    case OutlierLoss::kIce:
    case OutlierLoss::kIceMinus:
      return {ice_loss(row.anchor), T(0), -ice_slope(row.anchor), kNoTarget - 1 - row.largest_class};
    default:  // kMagnitude
      return {row.value, T(2), T(0), kNoTarget};
  }
}

// Writes the statistics of a row for backward and returns its loss. `target` is the row's argument; logit_at(k) loads v_k.
template <typename T, typename LogitAt>
FASTOOD_HD T finish_row(const LossSettings& settings, RowValue<T> row, int64_t num_classes, int64_t target, T weight,
                        T uniform_draw, const LogitAt& logit_at, T* stats) {
  const bool on_logits = settings.loss != OutlierLoss::kMagnitude;
  FinishedRow<T> done;
  if (on_logits && target >= num_classes - settings.num_reject) {
    // The CPU op raises before; a GPU cannot raise and returns NaN.
    row.anchor = T(NAN);
    done = {T(NAN), T(NAN), T(NAN), 0};
  } else if (target >= 0) {
    done = finish_id(settings, row, target, on_logits ? logit_at(target) : T(0));
  } else {
    const bool rejects = settings.loss == OutlierLoss::kRejectClass;
    const int64_t label = rejects ? pseudo_label(row.largest_class, num_classes, settings.num_reject, uniform_draw) : 0;
    done = finish_background(settings, row, static_cast<T>(num_classes), label, rejects ? logit_at(label) : T(0));
  }
  // A row that does not count gets a zero gradient here, so that RowGradient needs no check.
  const bool counts = weight != T(0) && (target >= 0 || settings.weight != 0);
  stats[kAnchor] = row.anchor;
  stats[kLambda] = row.lambda;
  stats[kScale] = counts ? weight * done.scale : T(0);
  const bool weighted_extra = has_target_term(row_term(settings.loss, target < 0));
  stats[kExtra] = !weighted_extra ? done.extra : counts ? weight * done.extra : T(0);
  stats[kTarget] = static_cast<T>(done.target);
  return done.loss;
}

// A row's statistics as backward reads them, times the factor of its gradient.
template <typename T>
struct RowGradient {
  RowTerm term;
  T anchor;
  T lambda;
  T scale;
  T extra;
  int64_t target;  // a class, or kNoTarget

  FASTOOD_HD RowGradient(OutlierLoss loss, const T* stats, double factor_id, double factor_background) {
    const int64_t code = static_cast<int64_t>(stats[kTarget]);
    const bool background = code < 0;
    const double factor = background ? factor_background : factor_id;
    term = row_term(loss, background);
    anchor = stats[kAnchor];
    lambda = stats[kLambda];
    // A row of infinite weight has an infinite scale, and its mean an infinite divisor, hence a factor of zero: its
    // gradient is NaN, as its loss is.
    scale = static_cast<T>(factor * stats[kScale]);
    const bool targeted = has_target_term(term);
    extra = targeted ? static_cast<T>(factor * stats[kExtra]) : stats[kExtra];
    target = !targeted ? kNoTarget : background ? -code - 2 : code;
    target = target < 0 ? kNoTarget : target;
  }

  // d loss / d v_k, except at the target; zero where scale is zero, for any logit.
  template <RowTerm kTerm>
  FASTOOD_HD T at(T logit) const {
    const T x = (logit - anchor) - lambda;
    if constexpr (kTerm == RowTerm::kUniformity) {
      return exp_minus(x, extra) * scale;
    } else if constexpr (kTerm == RowTerm::kEntropy) {
      return entropy_gradient(x, extra) * scale;
    } else if constexpr (kTerm == RowTerm::kNorm) {
      return logit * scale;
    } else {
      return exp_fast(x) * scale;
    }
  }

  FASTOOD_HD T at_target(T logit) const {
    const T probability_part = scale == T(0) ? T(0) : exp_minus((logit - anchor) - lambda, T(1)) * scale;
    return probability_part + (scale - extra);
  }
};

}  // namespace fastood::outlier_loss
