// The maths of one example of a background pool (Li & Vasconcelos 2020, supplementary sections B and C).
//
//     w = softplus(omega) = max(omega, 0) + log(1 + t),   t = exp(-|omega|)
// keeps its relative accuracy from omega = -80 to 10^6 without a branch (softplus.h); its mass is p = w^epsilon.
//
// One step of ascent on L = 1/B sum_b r_{i_b} l_b, with r_i = (Z/S) w_i / p_i, Z = sum p, S = sum w:
//     dL/domega_j = (sigmoid(omega_j) / w_j) { eps (L/Z) p_j - (L/S) w_j + (1 - eps) (Z/S)/B (w_j/p_j) sum_{b: i_b = j} l_b }
// sigmoid(omega) <= softplus(omega) bounds the first factor by 1, so that no term overflows where w is tiny. Since
// p_j <= Z, w_j <= S and the last sum is a part of L, |dL/domega_j| <= 2 L.
//
// These functions must give the same bits wherever they are called from: sums are kept by differences of their values.
// Hence this folder is compiled without contraction to fused multiply-adds (-ffp-contract=off, -fmad=false) but for those
// that are written out.
#pragma once

#include <cmath>
#include <cstdint>

#include "layout.h"
#include "softplus.h"

namespace fastood::background_pool {

// softplus(-80) = 2e-35 is a normal float32: no weight becomes permanently zero. 10^6 leaves float32 room for a step.
constexpr float kOmegaMin = -80.0f;
constexpr float kOmegaMax = 1e6f;

enum class PowerKind { kZero, kHalf, kOne, kGeneral };

FASTOOD_HD PowerKind power_kind(double epsilon) {
  return epsilon == 0     ? PowerKind::kZero
         : epsilon == 0.5 ? PowerKind::kHalf
         : epsilon == 1   ? PowerKind::kOne
                          : PowerKind::kGeneral;
}

FASTOOD_HD bool is_removed(float omega) {
  return omega < kOmegaMin;
}

struct PoolWeight {
  float weight;  // w
  float mass;    // w^epsilon
};

struct PoolExample {
  float weight;  // w
  float mass;    // w^epsilon
  float slope;   // sigmoid(omega) / w
  float rest;    // w^(1 - epsilon)
};

// (omega + |omega|) / 2 = max(omega, 0), exactly; a condition here would have the compiler take the root of both cases.
FASTOOD_HD float softplus_of(float omega, float t) {
  return 0.5f * (omega + fabsf(omega)) + log1p_of_unit(t);
}

template <PowerKind kPower>
FASTOOD_HD float mass_of(float w, float epsilon) {
  if constexpr (kPower == PowerKind::kZero) {
    return 1.0f;
  } else if constexpr (kPower == PowerKind::kHalf) {
    return sqrtf(w);
  } else if constexpr (kPower == PowerKind::kOne) {
    return w;
  } else {
    return exp_fast(epsilon * log_fast(w));
  }
}

template <PowerKind kPower>
FASTOOD_HD PoolWeight weigh(float omega, float epsilon) {
  const float w = softplus_of(omega, exp_of_negative(-fabsf(omega)));
  const float p = mass_of<kPower>(w, epsilon);
  const bool removed = is_removed(omega);
  return {removed ? 0.0f : w, removed ? 0.0f : p};
}

// All values of an example that is not removed; weight and mass as in `weigh`.
template <PowerKind kPower>
FASTOOD_HD PoolExample evaluate(float omega, float epsilon) {
  const float t = exp_of_negative(-fabsf(omega));
  const float w = softplus_of(omega, t);
  const float p = mass_of<kPower>(w, epsilon);
  const float slope = (omega < 0 ? t : 1.0f) / ((1.0f + t) * w);
  const float rest = kPower == PowerKind::kZero   ? w
                     : kPower == PowerKind::kHalf ? p
                     : kPower == PowerKind::kOne  ? 1.0f
                                                  : w / p;
  return {w, p, slope, rest};
}

// Rounds to a multiple of the quantum whose magic number this is: 1.5 * 2^52 quanta, at which float64 is spaced by one.
FASTOOD_HD double quantise(float value, double magic) {
  return (static_cast<double>(value) + magic) - magic;
}
FASTOOD_HD double quantise(double value, double magic) {
  return (value + magic) - magic;
}
FASTOOD_HD double magic_of(double quantum) {
  return 0x1.8p52 * quantum;
}

struct PoolStep {
  float mass_gain;    // eps L / Z
  float weight_loss;  // L / S
  float drawn_gain;   // (1 - eps) (Z / S) / B
  float momentum;
  float lr;
};

FASTOOD_HD PoolStep pool_step(double loss, double batch, double mass_total, double weight_total, double epsilon,
                              double momentum, double lr) {
  return {static_cast<float>(epsilon * loss / mass_total), static_cast<float>(loss / weight_total),
          static_cast<float>((1 - epsilon) * (mass_total / weight_total) / batch), static_cast<float>(momentum),
          static_cast<float>(lr)};
}

struct Moved {
  float omega;
  float velocity;
};

FASTOOD_HD Moved move(float omega, float velocity, float gradient, const PoolStep& step) {
  const float pushed = multiply_add(step.momentum, velocity, gradient);
  const float wanted = multiply_add(step.lr, pushed, omega);
  float clamped = wanted < kOmegaMin ? kOmegaMin : wanted;
  clamped = clamped > kOmegaMax ? kOmegaMax : clamped;
  const bool removed = is_removed(omega);
  // Reset momentum when the weight is clamped.
  return {removed ? omega : clamped, removed || clamped != wanted ? 0.0f : pushed};
}

// A step on an example that was not drawn.
template <PowerKind kPower>
FASTOOD_HD Moved move_undrawn(float omega, float velocity, float epsilon, const PoolStep& step) {
  const PoolExample e = evaluate<kPower>(omega, epsilon);
  const float normalisers = multiply_add(-step.weight_loss, e.weight, step.mass_gain * e.mass);
  return move(omega, velocity, e.slope * normalisers, step);
}

// A step on a drawn example; `loss` is the sum over its draws.
template <PowerKind kPower>
FASTOOD_HD Moved move_drawn(float omega, float velocity, float loss, float epsilon, const PoolStep& step) {
  const PoolExample e = evaluate<kPower>(omega, epsilon);
  const float normalisers = multiply_add(-step.weight_loss, e.weight, step.mass_gain * e.mass);
  // If all weights are tiny, drawn_gain exceeds float32, although its product with the tiny `rest` does not.
  const float gain = step.drawn_gain * loss;
  const double wide = static_cast<double>(step.drawn_gain) * loss * e.rest;
  const float sum = gain < INFINITY ? multiply_add(gain, e.rest, normalisers) : static_cast<float>(wide) + normalisers;
  return move(omega, velocity, e.slope * sum, step);
}

// --- draws ----------------------------------------------------------------------------------------------------------

// u in [0, 1) times the total, in whole quanta and below the total: what `find` descends by.
FASTOOD_HD double draw_target(double uniform, double total, double quantum) {
  const double target = floor(uniform * (total / quantum)) * quantum;
  return target < total ? target : total - quantum;
}

// Rejection: propose i uniformly, accept with probability p_i / bound. The expected number of trials is N bound / Z; up
// to this many they are cheaper than a descent. After kMaxTrials, once in 10^50 draws, the descent takes over.
constexpr double kWorthwhileTrials = 8;
constexpr uint32_t kMaxTrials = 1024;

struct Candidate {
  uint64_t index_bits;
  double uniform;  // 53 bits
};

// Philox4x32-10 (Salmon et al. 2011), keyed by the 53 bits of the draw's own uniform and counted by the trial: any number
// of trials from one uniform, and the same ones on every device.
FASTOOD_HD Candidate candidate(double uniform, uint32_t trial) {
  const auto bits = static_cast<int64_t>(uniform * 0x1p53);  // signed: the conversion that vectorises
  uint32_t k0 = static_cast<uint32_t>(bits);
  uint32_t k1 = static_cast<uint32_t>(bits >> 32);
  uint32_t c0 = trial, c1 = 0, c2 = 0, c3 = 0;
  FASTOOD_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t m0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t m1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(m1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(m1);
    c2 = static_cast<uint32_t>(m0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(m0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const auto second = static_cast<int64_t>((uint64_t{c3} << 32 | c2) >> 11);
  return {uint64_t{c1} << 32 | c0, static_cast<double>(second) * 0x1p-53};
}

// floor(bits N / 2^64), whose bias is below N / 2^64.
FASTOOD_HD int64_t scale_index(uint64_t bits, int64_t num_examples) {
#if defined(__CUDA_ARCH__)
  return static_cast<int64_t>(__umul64hi(bits, static_cast<uint64_t>(num_examples)));
#else
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>(static_cast<Wide>(bits) * static_cast<uint64_t>(num_examples) >> 64);
#endif
}

}  // namespace fastood::background_pool
