// Exponentials and logarithms that vectorise on the CPU and keep their relative accuracy around zero and one.
//
// expm1(x) is assembled from one polynomial, without a branch:
//     n = round(x / ln 2),   r = x - n ln 2  in [-ln 2 / 2, ln 2 / 2],
//     expm1(x) = 2^n (r + r^2 g(r)) + (2^n - 1),   g(r) = sum_j r^j / (j + 2)!
// For |x| < ln 2 / 2 it is n = 0 and r = x exactly, so that neither expm1(x) nor expm1(x) - x cancels.
//
// log(x) = e ln 2 + 2 atanh(f / (2 + f)) with x = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)).
// std::exp and std::log do not vectorise inside a shared object without -ffast-math; these do.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace fastood {

template <typename To, typename From>
FASTOOD_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Bits = int32_t;
  using UnsignedBits = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr float kLog2E = 1.44269504f;
  // ln 2 in two parts: n * kLn2High is exact for |n| < 2^9, as its last 9 bits are zero.
  static constexpr float kLn2High = 0.693359375f;
  static constexpr float kLn2Low = -2.12194440e-4f;
  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits.
  static constexpr float kRound = 12582912.0f;
  // Beyond these limits 2^n is not a normal number; exp(-87) = 1.6e-38 replaces 0.
  static constexpr float kMin = -87.0f;
  static constexpr float kMax = 88.0f;
  // Taylor coefficients 1/(j + 2)!, enough for the last bit on |r| <= ln 2 / 2.
  static constexpr int kTerms = 7;
  // Terms s^(2j) / (2j + 1) of atanh(s) / s, enough for the last bit on |s| <= 0.1716.
  static constexpr int kLogTerms = 5;
  static constexpr Bits kSqrtHalf = 0x3f3504f3;
};

template <>
struct ExpTraits<double> {
  using Bits = int64_t;
  using UnsignedBits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr double kLog2E = 1.4426950408889634;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kMin = -708.0;
  static constexpr double kMax = 709.0;
  static constexpr int kTerms = 13;
  static constexpr int kLogTerms = 11;
  static constexpr Bits kSqrtHalf = 0x3fe6a09e667f3bcd;
};

template <typename T>
struct ExpParts {
  T remainder;  // r
  T tail;       // r^2 g(r), so that expm1(r) = r + tail
  T scale;      // 2^n
};

// Infinities are clamped to the ends of the range; NaN passes through remainder and tail.
template <typename T>
FASTOOD_HD ExpParts<T> exp_parts(T x) {
  using Traits = ExpTraits<T>;
  using Bits = typename Traits::Bits;
  constexpr double kInverseFactorial[15] = {1.0 / 2,
                                            1.0 / 6,
                                            1.0 / 24,
                                            1.0 / 120,
                                            1.0 / 720,
                                            1.0 / 5040,
                                            1.0 / 40320,
                                            1.0 / 362880,
                                            1.0 / 3628800,
                                            1.0 / 39916800,
                                            1.0 / 479001600.,
                                            1.0 / 6227020800.,
                                            1.0 / 87178291200.,
                                            1.0 / 1307674368000.,
                                            1.0 / 20922789888000.};
  x = x < Traits::kMin ? Traits::kMin : x;
  x = x > Traits::kMax ? Traits::kMax : x;
  const T shifted = x * Traits::kLog2E + Traits::kRound;
  const T n = shifted - Traits::kRound;
  const T r = (x - n * Traits::kLn2High) - n * Traits::kLn2Low;
  T g = static_cast<T>(kInverseFactorial[Traits::kTerms - 1]);
  FASTOOD_UNROLL
  for (int j = Traits::kTerms - 2; j >= 0; --j) {
    g = g * r + static_cast<T>(kInverseFactorial[j]);
  }
  constexpr Bits kBias = sizeof(T) == 4 ? 127 : 1023;
  const Bits exponent = bit_cast<Bits>(shifted) - bit_cast<Bits>(Traits::kRound) + kBias;
  return {r, r * r * g, bit_cast<T>(static_cast<Bits>(exponent << Traits::kMantissa))};
}

template <typename T>
FASTOOD_HD T exp_fast(T x) {
  const ExpParts<T> e = exp_parts(x);
  return e.scale + e.scale * (e.remainder + e.tail);
}

// exp(x) - y; expm1 at y = 1, where it does not cancel.
template <typename T>
FASTOOD_HD T exp_minus(T x, T y) {
  const ExpParts<T> e = exp_parts(x);
  return e.scale * (e.remainder + e.tail) + (e.scale - y);
}

// expm1(x) - x >= 0 with a small relative error also where it is about x^2 / 2; x <= ExpTraits<T>::kMax.
template <typename T>
FASTOOD_HD T expm1_minus_x(T x, const ExpParts<T>& e) {
  return e.scale * e.tail + (e.scale * e.remainder - x) + (e.scale - T(1));
}

template <typename T>
FASTOOD_HD T expm1_minus_x(T x) {
  return expm1_minus_x(x, exp_parts(x));
}

// For x > 0 and normal; NaN for NaN and infinity, unspecified for x <= 0.
template <typename T>
FASTOOD_HD T log_fast(T x) {
  using Traits = ExpTraits<T>;
  using Bits = typename Traits::Bits;
  using Unsigned = typename Traits::UnsignedBits;  // wraps around for x outside the domain, without undefined behaviour
  const Bits above = static_cast<Bits>(bit_cast<Unsigned>(x) - static_cast<Unsigned>(Traits::kSqrtHalf));
  const Bits exponent = above >> Traits::kMantissa;
  const T f = bit_cast<T>(bit_cast<Unsigned>(x) - (static_cast<Unsigned>(exponent) << Traits::kMantissa)) - T(1);
  const T s = f / (T(2) + f);
  T sum = T(1) / T(2 * Traits::kLogTerms - 1);
  FASTOOD_UNROLL
  for (int j = Traits::kLogTerms - 2; j >= 0; --j) {
    sum = sum * (s * s) + T(1) / T(2 * j + 1);
  }
  const T e = static_cast<T>(exponent);
  return (e * Traits::kLn2High + (T(2) * s * sum + e * Traits::kLn2Low)) + (x - x);
}

// log(1 + x) for x >= 0: what 1 + x rounds off is added back to first order.
template <typename T>
FASTOOD_HD T log1p_fast(T x) {
  const T u = T(1) + x;
  return log_fast(u) + (x - (u - T(1))) / u;
}

}  // namespace fastood
