// bfloat16 and float16 as the CPU kernels read and write them: conversions that the compiler vectorises.
#pragma once

#include "exp.h"

namespace fastood {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

template <typename T>
FASTOOD_HD T to_compute(T value) {
  return value;
}

FASTOOD_HD float to_compute(BFloat16 value) {
  return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Multiplying the shifted bits by 2^112 rebuilds the exponent bias, for subnormal numbers as well.
FASTOOD_HD float to_compute(Float16 value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t inf_or_nan = magnitude | 0x7f800000u;
  return bit_cast<float>(sign | (magnitude >= 0x0f800000u ? inf_or_nan : finite));
}

// Rounds to nearest, ties to even, like PyTorch's own conversions.
template <typename To>
struct FromCompute {
  static FASTOOD_HD To convert(To value) { return value; }
};

template <>
struct FromCompute<BFloat16> {
  static FASTOOD_HD BFloat16 convert(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
  }
};

template <>
struct FromCompute<Float16> {
  static FASTOOD_HD Float16 convert(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Normal results: rebias the exponent by -112 and round off 13 bits.
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal results: adding 1/2 lets the float unit round to multiples of 2^-24.
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return {static_cast<uint16_t>(sign | half)};
  }
};

}  // namespace fastood
