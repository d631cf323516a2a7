// The nearest key of the same class by the sum of absolute differences, for host and device: Pei 2022, eq. 12.
//
//     distance_m = min_n |q_m - k_n|_1  over the keys n of the class of query m
//
// Queries and keys are sorted by class, and within a class by index: a class is a range of positions, and the smaller
// position of two keys is the smaller index.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace fastood::class_l1_nearest {

// The nearest key of a query so far. An infinite or NaN distance is never the nearest; of equal distances the first is.
// The result does not depend on how the keys are split, if parts are compared and merged in order.
template <typename T>
struct Nearest {
  T distance;
  int64_t position;  // of the key in the sorted order; -1 while there is none

  static FASTOOD_HD Nearest none() { return {static_cast<T>(INFINITY), -1}; }

  FASTOOD_HD void offer(T distance_, int64_t position_) {
    if (distance_ < distance) {
      distance = distance_;
      position = position_;
    }
  }
};

// The distance of a query with keys in its class; NaN if the query has a NaN, which comparisons would not detect.
template <typename T>
FASTOOD_HD T distance_or_nan(const Nearest<T>& nearest, const T* query, int64_t dim) {
  T distance = nearest.distance;
  for (int64_t j = 0; j < dim && nearest.position < 0; ++j) {
    distance = query[j] != query[j] ? query[j] : distance;
  }
  return distance;
}

// How many of the sorted classes are below `label`, or with kOrEqual at most `label`.
template <bool kOrEqual>
FASTOOD_HD int64_t count_below(const int64_t* classes, int64_t count, int64_t label) {
  int64_t first = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    const int64_t middle = classes[first + half];
    if (middle < label || (kOrEqual && middle == label)) {
      first += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return first;
}

// Positions from begin on, before end.
struct KeyRange {
  int64_t begin;
  int64_t end;
};

// Positions of the keys of a class; empty for a label below 0, which belongs to no class. For classes that are not sorted, any
// positions.
FASTOOD_HD KeyRange keys_of_class(const int64_t* classes, int64_t num_keys, int64_t label) {
  if (label < 0) {
    return {0, 0};
  }
  const int64_t begin = count_below<false>(classes, num_keys, label);
  const int64_t end = count_below<true>(classes, num_keys, label);
  return {begin, begin < end ? end : begin};
}

}  // namespace fastood::class_l1_nearest
