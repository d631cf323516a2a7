// Detection scores of a row of logits; higher is more out-of-distribution. One exponential per logit serves them all.
//
// With m the largest logit, s the second largest (s = m for a tie), k* the class of m, f = softmax(v), p = f_k*,
//
//     gap = m - s >= 0,                             R = sum_{k != k*} exp(v_k - s)  in [1, K - 1],
//     P = sum_{k != k*} (s - v_k) exp(v_k - s),     D = sum_{k != k*} (s - v_k),
//     odds = exp(-gap) R = (1 - p) / p,             lambda = log(1 + odds) = -log p,
//
//     msp         log((1 - p) / p) = log R - gap                                       Hendrycks & Gimpel 2017
//     max_logit   -m                                                                   Hendrycks 2022
//     energy      -logsumexp v = -(m + lambda)                                         Liu 2020
//     entropy     -sum f log f = lambda + exp(-gap) (gap R + P) / (1 + odds)           Li 2020, sec. 5.4
//     kl_uniform  -KL(U || f) = -(gap (K - 1) / K + D / K + lambda - log K)            Li 2020, eq. 5
//     gen         sum over the largest f_k of (f_k (1 - f_k))^gamma                    Liu 2023, eq. 3
//     reject      log(sum_reject exp v / sum_rest exp v)                               Mohseni 2020
//
// hold exactly. No term but log K is subtracted from another of its size, so that the scores of confident rows keep
// their digits; near the uniform point kl_uniform takes the form of common/uniformity.h instead. Sums run over all k
// with v_k capped at s: k* adds exp(0) = 1 to R, and 0 to P and D.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/exp.h"
#include "../common/uniformity.h"

namespace fastood::logit_scores {

// In the order of the op's results; bit j of a mask selects score j. fastood/ops/logit_scores.py has the same list.
enum class Score { kMsp, kMaxLogit, kEnergy, kEntropy, kKlUniform, kGen, kReject };
constexpr int kNumScores = 7;

struct ScoreSettings {
  int64_t mask;        // which scores
  int64_t num_reject;  // the last so many logits are reject classes, which only kReject reads
  double gen_gamma;
  int64_t gen_top;  // how many of the largest f_k; 0 for all

  FASTOOD_HD bool wants(Score score) const { return (mask >> static_cast<int>(score)) & 1; }

  FASTOOD_HD int num_scores() const {
    int count = 0;
    for (int score = 0; score < kNumScores; ++score) {
      count += wants(static_cast<Score>(score));
    }
    return count;
  }

  // Whether any score needs more than the largest logit.
  FASTOOD_HD bool wants_sums() const { return mask != int64_t{1} << static_cast<int>(Score::kMaxLogit); }
};

// exp(x) to exactly zero, where exp_fast stops at its smallest result.
template <typename T>
FASTOOD_HD T exp_or_zero(T x) {
  return x < ExpTraits<T>::kMin ? T(0) : exp_fast(x);
}

// The two largest logits; NaN is only counted.
template <typename T>
struct TopTwo {
  T largest;
  T second;
  T num_nan;
};

template <typename T>
FASTOOD_HD void add_to_top(T logit, T& largest, T& second, T& num_nan) {
  const T lower = logit < largest ? logit : largest;
  second = second < lower ? lower : second;
  largest = largest < logit ? logit : largest;
  num_nan += logit == logit ? T(0) : T(1);
}

// Where there is no second logit, or none that is not masked, the largest takes its place.
template <typename T>
FASTOOD_HD T second_or_largest(T largest, T second) {
  return second == T(-INFINITY) ? largest : second;
}

template <typename T>
struct ScoreSums {
  T exponential;  // R + 1
  T product;      // P
  T deviation;    // D
};

// v_k - s <= 0, capped; NaN for NaN.
template <typename T>
FASTOOD_HD T below_second(T logit, T second) {
  return (second < logit ? second : logit) - second;
}

template <typename T>
FASTOOD_HD void add_to_sums(T logit, T second, T& exponential, T& product, T& deviation) {
  const T x = below_second(logit, second);
  const T e = exp_fast(x);
  exponential += e;
  product -= x < ExpTraits<T>::kMin ? T(0) : x * e;  // 0 at a masked logit
  deviation -= x;
}

// The statistics from which all scores of a row are computed.
template <typename T>
struct RowSoftmax {
  T largest;    // m
  T gap;        // NaN where the row has no scores: a logit is NaN or +inf, or all are -inf
  T others;     // R; 0 where one logit alone is not masked
  T product;    // P
  T deviation;  // D
  T ratio;      // exp(-gap)
  T lambda;
};

// K as the scores of a row need it.
template <typename T>
struct ClassCount {
  T count;
  T log;

  FASTOOD_HD explicit ClassCount(int64_t num_classes)
      : count(static_cast<T>(num_classes)), log(log_fast(static_cast<T>(num_classes))) {}
};

template <typename T>
FASTOOD_HD RowSoftmax<T> row_softmax(const TopTwo<T>& top, const ScoreSums<T>& sums) {
  const bool has_scores = top.num_nan == T(0) && top.largest - top.largest == T(0);
  const T second = second_or_largest(top.largest, top.second);
  RowSoftmax<T> row;
  row.largest = top.largest;
  row.gap = has_scores ? top.largest - second : T(NAN);
  row.others = sums.exponential - T(1);
  row.product = sums.product;
  row.deviation = sums.deviation;
  row.ratio = exp_or_zero(-row.gap);
  row.lambda = log1p_fast(row.ratio * row.others);
  return row;
}

template <typename T>
FASTOOD_HD T max_logit_score(const TopTwo<T>& top) {
  return top.num_nan == T(0) && top.largest - top.largest == T(0) ? -top.largest : T(NAN);
}

template <typename T>
FASTOOD_HD T msp_score(const RowSoftmax<T>& row) {
  return row.others == T(0) ? T(-INFINITY) : log_fast(row.others) - row.gap;
}

template <typename T>
FASTOOD_HD T energy_score(const RowSoftmax<T>& row) {
  return -(row.largest + row.lambda);
}

template <typename T>
FASTOOD_HD T entropy_score(const RowSoftmax<T>& row) {
  const T gap = row.gap > -ExpTraits<T>::kMin ? -ExpTraits<T>::kMin : row.gap;  // beyond, ratio is 0
  return row.lambda + row.ratio * (gap * row.others + row.product) / (T(1) + row.ratio * row.others);
}

// The largest logit less the mean; all terms are positive.
template <typename T>
FASTOOD_HD T rise_over_mean(const RowSoftmax<T>& row, const ClassCount<T>& K) {
  return row.gap * ((K.count - T(1)) / K.count) + row.deviation / K.count;
}

// Rows for which kl_uniform would cancel. Beyond, KL(U || f) > 1; within, exp(v_k - mean) <= e K.
template <typename T>
FASTOOD_HD bool near_uniform(const RowSoftmax<T>& row, const ClassCount<T>& K) {
  return rise_over_mean(row, K) <= K.log + T(1);
}

template <typename T>
FASTOOD_HD T mean_logit(const RowSoftmax<T>& row, const ClassCount<T>& K) {
  return row.largest - rise_over_mean(row, K);
}

template <typename T>
FASTOOD_HD T kl_uniform_score(const RowSoftmax<T>& row, const ClassCount<T>& K) {
  return -(rise_over_mean(row, K) + (row.lambda - K.log));
}

// kl_uniform near the uniform point, from sums of add_uniformity<false> about `anchor`, the rounded mean.
template <typename T>
FASTOOD_HD T kl_uniform_score_near(T anchor, T largest, T exponential, T deviation, const ClassCount<T>& K) {
  const RowSums<double> sums{deviation, exponential, 0};
  return -uniformity_row(anchor, largest, sums, K.count).value;
}

// (f (1 - f))^gamma for f <= 1/2, from log f.
template <typename T>
FASTOOD_HD T gen_term(T log_f, T gamma) {
  return exp_or_zero(gamma * (log_f + log_fast(T(1) - exp_fast(log_f))));
}

// log f of a logit x = v_k - s <= 0 beside the largest is x + gen_base.
template <typename T>
FASTOOD_HD T gen_base(const RowSoftmax<T>& row) {
  return -(row.gap + row.lambda);
}

// sum: that of gen_term over the selected capped logits, with k* counted as a second s.
template <typename T>
FASTOOD_HD T gen_score(const RowSoftmax<T>& row, T sum, T gamma) {
  // log p + log(1 - p) with the digits of 1 - p.
  const T of_largest = exp_or_zero(gamma * (msp_score(row) - T(2) * row.lambda));
  return row.others == T(0) ? row.gap : (sum - gen_term(gen_base(row), gamma)) + of_largest;
}

// log-odds of the reject classes together; all of them masked: -inf.
template <typename T>
FASTOOD_HD T reject_score(const RowSoftmax<T>& rest, const TopTwo<T>& top, const RowSoftmax<T>& reject) {
  const bool all_masked = top.largest == T(-INFINITY) && top.num_nan == T(0);
  // The difference propagates NaN if the other scores are NaN.
  return all_masked ? T(-INFINITY) + (rest.gap - rest.gap)
                    : (reject.largest - rest.largest) + (reject.lambda - rest.lambda);
}

// Selection of the logits closest below s, by bisection on the bits of the distance s - v_k >= 0: those of non-negative
// floats are ordered like the floats.
template <typename T>
struct Selection {
  using Bits = typename ExpTraits<T>::Bits;

  int64_t wanted = 0;                           // fewer than there are
  Bits low = 0;                                 // at most `wanted` distances are below
  Bits high = bit_cast<Bits>(T(INFINITY)) + 1;  // more than `wanted` distances are below
  int64_t num_low = 0;                          // distances below low

  FASTOOD_HD bool active() const { return num_low != wanted && high - low > 1; }

  // Where to count next. Two guesses bracket most rows within six binades: by Markov's inequality at least `wanted` of K
  // distances with sum D are below D / (K - wanted).
  FASTOOD_HD T pivot(int step, T bound) const {
    const Bits guess = bit_cast<Bits>(step == 0 ? bound : bound * T(0.015625));
    return bit_cast<T>(step < 2 && guess > low && guess < high ? guess : low + (high - low) / 2);
  }

  FASTOOD_HD void update(T pivot, int64_t num_below) {
    const Bits bits = bit_cast<Bits>(pivot);
    if (num_below <= wanted) {
      low = bits;
      num_low = num_below;
    } else {
      high = bits;
    }
  }

  // Distances below it are all taken; of those at it, which are ties, `remainder`.
  FASTOOD_HD T limit() const { return bit_cast<T>(low); }
  FASTOOD_HD int64_t remainder() const { return wanted - num_low; }
};

}  // namespace fastood::logit_scores
