// float16, converted as by CUDA. Not by csrc/common/reduced_float.h: a fault there would hide in a comparison with the
// CPU op.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = value.bits >> 10 & 0x1fu;
  const uint32_t mantissa = value.bits & 0x3ffu;
  float magnitude;
  if (exponent == 31) {
    magnitude = std::bit_cast<float>(0x7f800000u | mantissa << 13);
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  } else {
    magnitude = std::bit_cast<float>((exponent + 112) << 23 | mantissa << 13);
  }
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

inline __half __float2half_rn(float value) {
  if (value != value) return {0x7fff};  // CUDA has one NaN
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x1p-14f) {  // a multiple of 2^-24
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)))};
  }
  const uint32_t m = bits & 0x7fffffffu;
  return {static_cast<uint16_t>(sign | ((m - 0x38000000u + 0xfffu + (m >> 13 & 1u)) >> 13))};
}
