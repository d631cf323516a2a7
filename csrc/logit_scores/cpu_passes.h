// The passes over blocks of logits, for the CPU. Part of cpu.cpp: everything here is compiled once per instruction set.
//
// A block is kLanes numbers side by side: one class of each of kLanes rows, or kLanes classes of one row. A pass adds blocks
// lane by lane; the lanes of one row are merged afterwards.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "cpu.h"

namespace fastood::logit_scores::FASTOOD_CPU_CAPABILITY {
namespace {

// One AVX-512 vector of floats; two of AVX2. At most kRowTile of common/cpu_rows.h.
constexpr int64_t kLanes = 16;
// Lanes of one row are carried in the compute type over this many blocks, then added up in double.
constexpr int64_t kChunkBlocks = 64;
// Lanes of kLanes rows are added up in the compute type: partial sums of this many blocks keep rounding errors small.
constexpr int64_t kTileChunkBlocks = 16;

template <typename T>
struct Lanes {
  alignas(64) T at[kLanes];

  void fill(T value) { std::fill_n(at, kLanes, value); }
};

// The classes of one row (kOneRow), or of kLanes rows.
template <typename Element, bool kOneRow>
struct Classes {
  using T = Compute<Element>;
  static constexpr int64_t kRows = kOneRow ? 1 : kLanes;  // lanes that hold a result

  const Element* blocks;
  int64_t num_blocks;
  int64_t num_rest;  // of one row, the classes past the last whole block
  Lanes<T> rest;     // padded with -inf

  Classes(const Element* logits, int64_t num_classes)
      : blocks(logits), num_blocks(kOneRow ? num_classes / kLanes : num_classes), num_rest(0) {
    if constexpr (kOneRow) {
      num_rest = num_classes % kLanes;
      for (int64_t j = 0; j < kLanes; ++j) {
        rest.at[j] = j < num_rest ? to_compute(logits[num_blocks * kLanes + j]) : T(-INFINITY);
      }
    }
  }
};

template <typename T>
struct TopLanes {
  Lanes<T> largest;
  Lanes<T> second;
  Lanes<T> num_nan;

  TopTwo<T> row(int64_t j) const { return {largest.at[j], second.at[j], num_nan.at[j]}; }
};

template <typename Element, typename T = Compute<Element>>
void add_top_two(const Element* blocks, int64_t num_blocks, TopLanes<T>& top) {
  TopLanes<T> local = top;
  for (int64_t block = 0; block < num_blocks; ++block) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) {
      add_to_top(to_compute(blocks[block * kLanes + j]), local.largest.at[j], local.second.at[j], local.num_nan.at[j]);
    }
  }
  top = local;
}

// The two largest of one row, to lane 0, from those of its lanes.
template <typename T>
void merge(TopLanes<T>& top) {
  T largest = -INFINITY;
  T num_nan = 0;
#pragma omp simd reduction(max : largest) reduction(+ : num_nan)
  for (int64_t j = 0; j < kLanes; ++j) {
    largest = largest < top.largest.at[j] ? top.largest.at[j] : largest;
    num_nan += top.num_nan.at[j];
  }
  T second = -INFINITY;
  T num_largest = 0;
#pragma omp simd reduction(max : second) reduction(+ : num_largest)
  for (int64_t j = 0; j < kLanes; ++j) {
    const bool has_largest = top.largest.at[j] == largest;
    const T candidate = has_largest ? top.second.at[j] : top.largest.at[j];
    second = second < candidate ? candidate : second;
    num_largest += has_largest ? T(1) : T(0);
  }
  top.largest.at[0] = largest;
  top.second.at[0] = num_largest > T(1) ? largest : second;
  top.num_nan.at[0] = num_nan;
}

template <typename Element, bool kOneRow, typename T = Compute<Element>>
TopLanes<T> top_two(const Classes<Element, kOneRow>& classes) {
  TopLanes<T> top;
  top.largest.fill(-INFINITY);
  top.second.fill(-INFINITY);
  top.num_nan.fill(0);
  add_top_two(classes.blocks, classes.num_blocks, top);
  if constexpr (kOneRow) {
    add_top_two(classes.rest.at, 1, top);
    merge(top);
  }
  return top;
}

template <typename T, size_t kCount>
using LaneSums = std::array<Lanes<T>, kCount>;

// Adds up the results of pass(blocks, num_blocks) over all classes; every lane of one row gets its sum.
template <size_t kCount, typename Element, bool kOneRow, typename Pass, typename T = Compute<Element>>
LaneSums<T, kCount> sum_classes(const Classes<Element, kOneRow>& classes, const Pass& pass) {
  if constexpr (!kOneRow) {
    LaneSums<T, kCount> total{};
    for (int64_t begin = 0; begin < classes.num_blocks; begin += kTileChunkBlocks) {
      const int64_t count = std::min(kTileChunkBlocks, classes.num_blocks - begin);
      const LaneSums<T, kCount> sums = pass(classes.blocks + begin * kLanes, count);
      for (size_t i = 0; i < kCount; ++i) {
#pragma omp simd
        for (int64_t j = 0; j < kLanes; ++j) {
          total[i].at[j] += sums[i].at[j];
        }
      }
    }
    return total;
  } else {
    double total[kCount] = {};
    const auto add = [&total](const LaneSums<T, kCount>& sums, int64_t num_lanes) {
      for (size_t i = 0; i < kCount; ++i) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < kLanes; ++j) {
          sum += j < num_lanes ? sums[i].at[j] : T(0);
        }
        total[i] += sum;
      }
    };
    for (int64_t begin = 0; begin < classes.num_blocks; begin += kChunkBlocks) {
      const int64_t count = std::min(kChunkBlocks, classes.num_blocks - begin);
      add(pass(classes.blocks + begin * kLanes, count), kLanes);
    }
    if (classes.num_rest > 0) {
      add(pass(classes.rest.at, int64_t{1}), classes.num_rest);
    }
    LaneSums<T, kCount> result;
    for (size_t i = 0; i < kCount; ++i) {
      result[i].at[0] = static_cast<T>(total[i]);
    }
    return result;
  }
}

// exponential, product and deviation of ScoreSums.
template <typename Element, typename T = Compute<Element>>
LaneSums<T, 3> exponential_sums(const Element* blocks, int64_t num_blocks, const Lanes<T>& second) {
  LaneSums<T, 3> sums{};
  for (int64_t block = 0; block < num_blocks; ++block) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) {
      add_to_sums(to_compute(blocks[block * kLanes + j]), second.at[j], sums[0].at[j], sums[1].at[j], sums[2].at[j]);
    }
  }
  return sums;
}

// exponential and deviation of RowSums.
template <typename Element, typename T = Compute<Element>>
LaneSums<T, 2> uniformity_sums(const Element* blocks, int64_t num_blocks, const Lanes<T>& anchor) {
  LaneSums<T, 2> sums{};
  for (int64_t block = 0; block < num_blocks; ++block) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) {
      RowSums<T> one{0, 0, 0};
      add_uniformity<false>(to_compute(blocks[block * kLanes + j]), anchor.at[j], anchor.at[j], one);
      sums[0].at[j] += one.exponential;
      sums[1].at[j] += one.deviation;
    }
  }
  return sums;
}

// How many logits are closer to s than `pivot`.
template <typename Element, typename T = Compute<Element>>
LaneSums<T, 1> count_below(const Element* blocks, int64_t num_blocks, const Lanes<T>& second, const Lanes<T>& pivot) {
  LaneSums<T, 1> count{};
  for (int64_t block = 0; block < num_blocks; ++block) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) {
      const T distance = -below_second(to_compute(blocks[block * kLanes + j]), second.at[j]);
      count[0].at[j] += distance < pivot.at[j] ? T(1) : T(0);
    }
  }
  return count;
}

// gen_term over the logits closer to s than `limit`.
template <typename Element, typename T = Compute<Element>>
LaneSums<T, 1> gen_sums(const Element* blocks, int64_t num_blocks, const Lanes<T>& second, const Lanes<T>& base,
                        const Lanes<T>& limit, T gamma) {
  LaneSums<T, 1> sum{};
  for (int64_t block = 0; block < num_blocks; ++block) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) {
      const T x = below_second(to_compute(blocks[block * kLanes + j]), second.at[j]);
      const T term = gen_term(x + base.at[j], gamma);
      sum[0].at[j] += -x < limit.at[j] ? term : T(0);
    }
  }
  return sum;
}

}  // namespace
}  // namespace fastood::logit_scores::FASTOOD_CPU_CAPABILITY
