// exp(-|x|) and log(1 + t) for t in [0, 1], the two halves of softplus in float32, with one rounding less than a general
// exp and log need and without a division:
//     exp(x) = 2^n (1 + r + r^2 q(r)),  n = round(x / ln 2),  r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2],  x <= 0
//     log(1 + t) = t g(t)
// q and g are least-maximum polynomials, fitted to a relative error of 3e-9 and 5e-9 before rounding.
//
// Multiply-adds are explicit, so that they round alike in every loop that the compiler generates, as the pool's sums
// require (math.h). Without hardware multiply-adds they are computed in double: equal except for rare last bits, and
// consistent on one machine.
#pragma once

#include "../common/exp.h"

namespace fastood::background_pool {

FASTOOD_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return static_cast<float>(static_cast<double>(a) * b + c);
#endif
}

// For x <= 0; below -87 the result is that at -87, 1.6e-38.
FASTOOD_HD float exp_of_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  x = x < -87.0f ? -87.0f : x;
  const float shifted = multiply_add(x, 1.44269504f, kRound);
  const float n = shifted - kRound;
  const float r = multiply_add(n, -1.42860677e-06f, multiply_add(n, -0.693145752f, x));
  float q = 1.381459878757596e-3f;
  q = multiply_add(q, r, 8.368716575205326e-3f);
  q = multiply_add(q, r, 4.166838899254799e-2f);
  q = multiply_add(q, r, 1.666652113199234e-1f);
  q = multiply_add(q, r, 4.999999403953552e-1f);
  const float scale = bit_cast<float>((bit_cast<int32_t>(shifted) - bit_cast<int32_t>(kRound) + 127) << 23);
  return multiply_add(scale, multiply_add(r * r, q, r), scale);
}

// For t in [0, 1].
FASTOOD_HD float log1p_of_unit(float t) {
  float g = -3.244025632739067e-3f;
  g = multiply_add(g, t, 1.985146664083004e-2f);
  g = multiply_add(g, t, -5.695954337716103e-2f);
  g = multiply_add(g, t, 1.060365661978722e-1f);
  g = multiply_add(g, t, -1.530559360980988e-1f);
  g = multiply_add(g, t, 1.967594027519226e-1f);
  g = multiply_add(g, t, -2.495413422584534e-1f);
  g = multiply_add(g, t, 3.332996368408203e-1f);
  g = multiply_add(g, t, -4.999990165233612e-1f);
  g = multiply_add(g, t, 1.0f);
  return g * t;
}

}  // namespace fastood::background_pool
