// Scores as integers of the same order, which sort, merge and compare without special cases for signs.
//
// The bits of non-negative floats are ordered like the floats, those of negative floats in reverse, so that they are
// flipped. -0.0 gets the key of +0.0. NaN gets the largest key, which no number has (the key of +inf is smaller); it
// also pads rows.
#pragma once

#include <cstdint>
#include <limits>

#include "../common/reduced_float.h"

namespace fastood::detection_metrics {

template <typename Score>
struct KeyOf {  // float32, and bfloat16 and float16 through it: widening keeps the order
  using type = int32_t;
};
template <>
struct KeyOf<double> {
  using type = int64_t;
};
template <typename Score>
using ScoreKey = typename KeyOf<Score>::type;

template <typename Key>
constexpr Key kNanKey = std::numeric_limits<Key>::max();

// The bits of -0.0.
template <typename Key>
constexpr Key kMinusZero = std::numeric_limits<Key>::min();

// All bits but the sign where that is set: its own inverse.
template <typename Key>
FASTOOD_HD Key flip_negative(Key bits) {
  return bits ^ (bits < 0 ? ~kMinusZero<Key> : Key{0});
}

FASTOOD_HD int32_t key_of(float score) {
  const int32_t bits = bit_cast<int32_t>(score);
  // Not by adding 0.0f: where torch.set_flush_denormal is on, that would tie denormal scores.
  const int32_t key = bits == kMinusZero<int32_t> ? 0 : flip_negative(bits);
  return score != score ? kNanKey<int32_t> : key;
}

FASTOOD_HD int64_t key_of(double score) {
  const int64_t bits = bit_cast<int64_t>(score);
  const int64_t key = bits == kMinusZero<int64_t> ? 0 : flip_negative(bits);
  return score != score ? kNanKey<int64_t> : key;
}

FASTOOD_HD double score_of(int32_t key) {
  return bit_cast<float>(flip_negative(key));
}
FASTOOD_HD double score_of(int64_t key) {
  return bit_cast<double>(flip_negative(key));
}

}  // namespace fastood::detection_metrics
