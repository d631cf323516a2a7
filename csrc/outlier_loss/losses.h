// The losses of mixed batches, and the statistics that forward passes to backward.
//
//     L = mean over in-distribution rows of l_i  +  lambda * mean over background rows of l_i
//
// A target >= 0 is a class, a target < 0 background. Each mean is weighted by w_i, and divided by the sum of weights or
// by the number of its rows. Per row, f = softmax(v), E = -logsumexp(v), relu(x) = max(x, 0):
//
//     loss          in-distribution l_i                     background l_i                          source
//     kUniformity   -log f_y                                KL(U || f)                              Li 2020 eq. 1, 5
//     kEntropy      -log f_y                                sum f log f + log K = KL(f || U)        Li 2020 sec. 5.4
//     kEnergyMargin -log f_y + lambda relu(E - m_in)^2      relu(m_out - E)^2                       Liu 2020 eq. 8, 9
//     kEnergy       -log f_y + lambda E                     -E                                      Wu 2023 eq. 0.5
//     kRejectClass  -log f_y                                -log f_t, t the pseudo-label            Mohseni 2020 Alg. 1
//     kIce          -log f_y - lambda v_y                   -log(1 - exp(max v))                    Wu 2023 eq. 0.13-15
//     kIceMinus     -log f_y                                -log(1 - exp(max v))                    Wu 2023 Tab. 3, ICE-
//     kSigmoid      -log f_y - lambda log s(v_y)            -log(1 - s(max v)), s the sigmoid       Wu 2023 Tab. 3, BCE
//     kMagnitude    relu(m_in - |v|)^2                      |v|^2, v the features                   Dhamija 2018 eq. 2
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace fastood::outlier_loss {

enum class OutlierLoss : int64_t {
  kUniformity,
  kEntropy,
  kEnergyMargin,
  kEnergy,
  kRejectClass,
  kIce,
  kMagnitude,
  kIceMinus,
  kSigmoid,
};
constexpr int64_t kNumLosses = 9;

struct LossSettings {
  OutlierLoss loss;
  double weight;             // lambda
  double margin_id;          // m_in
  double margin_background;  // m_out
  int64_t num_reject;        // the last classes of a row, for kRejectClass
  bool by_weight;            // a mean divides by its sum of weights, else by its number of rows
};

// The statistics that a loss needs of a row of logits.
enum class RowTerm {
  kSoftmax,     // the largest logit, and the log of the sum of the others relative to it
  kUniformity,  // KL(U || f) without cancellation
  kEntropy,     // KL(f || U) without cancellation
  kMaximum,     // the largest logit alone
  kNorm,        // the sum of squares
};

// Whether a background row's loss depends on the largest logit alone.
FASTOOD_HD constexpr bool needs_maximum(OutlierLoss loss) {
  return loss == OutlierLoss::kIce || loss == OutlierLoss::kIceMinus || loss == OutlierLoss::kSigmoid;
}

FASTOOD_HD constexpr RowTerm row_term(OutlierLoss loss, bool background) {
  if (loss == OutlierLoss::kMagnitude) {
    return RowTerm::kNorm;
  }
  if (background && loss == OutlierLoss::kUniformity) {
    return RowTerm::kUniformity;
  }
  if (background && loss == OutlierLoss::kEntropy) {
    return RowTerm::kEntropy;
  }
  return background && needs_maximum(loss) ? RowTerm::kMaximum : RowTerm::kSoftmax;
}

// Whether a background row's loss needs the class of the largest logit.
FASTOOD_HD constexpr bool needs_largest_class(OutlierLoss loss) {
  return loss == OutlierLoss::kRejectClass || needs_maximum(loss);
}

// Row statistics, one line per row: with x_k = (v_k - anchor) - lambda, and before the upstream gradient and the factor
// of the row's mean, the gradient is
//
//     kSoftmax, kMaximum   scale exp(x_k), and at the target scale expm1(x_t) + (scale - extra)
//     kUniformity          scale (exp(x_k) - extra)
//     kEntropy             scale exp(x_k) (x_k - extra)
//     kNorm                scale v_k
//
// target: a class for an in-distribution row; below zero for background, kNoTarget or kNoTarget - 1 - class.
enum StatsColumn { kAnchor, kLambda, kScale, kExtra, kTarget, kRowStats };
constexpr int64_t kNoTarget = -1;

// The target column holds kNoTarget - 1 - class as a float, exact down to -2^24.
constexpr int64_t kMaxClasses = (int64_t{1} << 24) - 1;

// Results over rows that backward and the gradient of the weights need, float64: the factor of a row's gradient
// (1 / divisor of its mean, times lambda for background) and the two means. Both are zero if no row of the kind counts;
// a zero factor with a NaN mean is due to an infinite divisor.
enum FactorColumn { kFactorId, kFactorBackground, kMeanId, kMeanBackground, kNumFactors };

// Sums over the rows of one kind; in float64 and in a fixed order, so that results repeat bit for bit.
struct RowTotals {
  double loss;
  double divisor;
};

FASTOOD_HD void add_row(RowTotals& totals, double weight, double loss, bool by_weight) {
  // Avoid 0 * inf and 0 * NaN: rows of weight zero add nothing.
  totals.loss += weight == 0 ? 0 : weight * loss;
  totals.divisor += by_weight ? weight : 1;
}

FASTOOD_HD void store_factors(const LossSettings& settings, const RowTotals& id, const RowTotals& background,
                              double* factors) {
  // Avoid 0 * inf: with lambda = 0 an infinite background loss must not count.
  const bool without = background.divisor == 0 || settings.weight == 0;
  factors[kFactorId] = id.divisor == 0 ? 0 : 1 / id.divisor;
  factors[kFactorBackground] = without ? 0 : settings.weight / background.divisor;
  factors[kMeanId] = id.divisor == 0 ? 0 : id.loss / id.divisor;
  factors[kMeanBackground] = without ? 0 : background.loss / background.divisor;
}

FASTOOD_HD double total_loss(const LossSettings& settings, const double* factors) {
  return factors[kMeanId] + settings.weight * factors[kMeanBackground];
}

}  // namespace fastood::outlier_loss
