// The random numbers of the resampling: a function of (seed, stream, replicate, position), and so the same on every
// device, number of threads and chunk of replicates.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace fastood::detection_metrics {

// How often a resampled set holds each of its samples. u(j) are 64 random bits.
enum class Resampling : int64_t {
  kMultinomial,  // count draws with replacement; draw j takes sample u(j) count / 2^64, rounded down
  kPoisson,      // sample j counts k times where the Poisson(1) distribution function reaches u(j) / 2^64 at k
  kSubset,       // the `size` samples j of smallest (u(j), j) count once
};

struct RandomStream {
  uint64_t seed;
  uint32_t replicate;
  uint32_t stream;
};

// Two numbers of one block.
struct RandomPair {
  uint64_t first;
  uint64_t second;
};

// Philox4x32-10 (Salmon et al. 2011): key the seed, counter (block, block >> 32, replicate, stream).
FASTOOD_HD RandomPair philox(const RandomStream& of, uint64_t block) {
  constexpr uint64_t kLow = 0xffffffffu;
  // 64-bit variables that hold 32 bits: the shape in which compilers vectorise a 32 x 32 -> 64 bit product.
  uint64_t c0 = block & kLow;
  uint64_t c1 = block >> 32;
  uint64_t c2 = of.replicate;
  uint64_t c3 = of.stream;
  uint64_t k0 = of.seed & kLow;
  uint64_t k1 = of.seed >> 32;
  for (int round = 0; round < 10; ++round) {
    const uint64_t m0 = (c0 & kLow) * 0xD2511F53u;
    const uint64_t m1 = (c2 & kLow) * 0xCD9E8D57u;
    c0 = (m1 >> 32) ^ c1 ^ k0;
    c1 = m1 & kLow;
    c2 = (m0 >> 32) ^ c3 ^ k1;
    c3 = m0 & kLow;
    k0 = (k0 + 0x9E3779B9u) & kLow;
    k1 = (k1 + 0xBB67AE85u) & kLow;
  }
  return {c1 << 32 | c0, c3 << 32 | c2};
}

// u count / 2^64, rounded down, for count < 2^32.
FASTOOD_HD uint64_t scale_draw(uint64_t u, uint64_t count) {
  const uint64_t low = (u & 0xffffffffu) * count;
  const uint64_t high = (u >> 32) * count;
  return (high + (low >> 32)) >> 32;
}

FASTOOD_HD int32_t poisson_draw(uint64_t u) {
  // 2^64 P(X <= k) of Poisson(1), rounded down, for k = 0 … 19; beyond, less than 2^-64 is left.
  constexpr uint64_t kAtMost[] = {
      0x5e2d58d8b3bcdf1au, 0xbc5ab1b16779be35u, 0xeb715e1dc1582dc2u, 0xfb23979734a252f1u, 0xff1025f59174dc3du,
      0xffd90f3ba4055e19u, 0xfffa8b71fc72c913u, 0xffff540c0914b3c9u, 0xffffed1f4aa8f120u, 0xfffffe216e641462u,
      0xffffffd4d85d3183u, 0xfffffffc6da262b4u, 0xffffffffba12d178u, 0xfffffffffb07c64cu, 0xffffffffffab8ea5u,
      0xfffffffffffabe22u, 0xffffffffffffb11au, 0xfffffffffffffba1u, 0xffffffffffffffc5u, 0xfffffffffffffffdu,
  };
  int32_t count = 0;
  FASTOOD_UNROLL
  for (const uint64_t bound : kAtMost) {
    count += bound <= u ? 1 : 0;
  }
  return count;
}

// The `size` smallest of a replicate's numbers, narrowed down digit by digit by counting: no sort, no memory but the bins.
struct SubsetBound {
  static constexpr int kDigitBits = 11;
  static constexpr int kBins = 1 << kDigitBits;

  // Numbers with u >> shift == prefix are in question (initially all), smaller ones are in the subset. `missing` of
  // those in question are still to be taken; after the last digit, the first by position.
  int64_t missing;
  int64_t num_in_question;  // after the last digit
  uint64_t prefix;
  int shift;
  bool is_open;

  static FASTOOD_HD SubsetBound of(int64_t size) { return {size, 0, 0, 64, true}; }

  FASTOOD_HD bool in_question(uint64_t u) const { return shift == 64 || u >> shift == prefix; }
  FASTOOD_HD bool is_smaller(uint64_t u) const { return shift < 64 && u >> shift < prefix; }

  FASTOOD_HD int next_shift() const { return shift > kDigitBits ? shift - kDigitBits : 0; }
  FASTOOD_HD int bin(uint64_t u) const {
    return static_cast<int>(u >> next_shift() & ((uint64_t{1} << (shift - next_shift())) - 1));
  }

  // With bins[digit] of the numbers in question.
  FASTOOD_HD void narrow(const int64_t* bins) {
    int digit = 0;
    while (digit < kBins - 1 && missing > bins[digit]) {
      missing -= bins[digit++];
    }
    prefix = prefix << (shift - next_shift()) | static_cast<uint64_t>(digit);
    shift = next_shift();
    num_in_question = bins[digit];
    is_open = shift > 0 && missing < num_in_question;
  }
};

}  // namespace fastood::detection_metrics
