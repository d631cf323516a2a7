// The search for the nearest key of a class on CUDA, as the program of a warp (../common/cuda_program.h).
//
// A tile is kTileQueries queries that follow each other in the sorted order. A warp takes, for each class in its tile, a
// share of the keys of that class, kTileKeys at a time: its lanes read neighbouring features of a key, once for all queries of
// the class, and keep their part of every pair's sum in a register. The queries come from the level-1 cache.
#pragma once

#include "../common/cuda_program.h"
#include "../common/in_range.h"
#include "../common/reduced_float.h"
#include "math.h"

namespace fastood::class_l1_nearest {

// 32 sums a lane, and 125 to 128 registers with all else in float32 (ptxas, sm_90): four warps on each of an SM's
// schedulers.
constexpr int kSearchQueries = 8;
constexpr int kSearchKeys = 4;

template <typename Key, typename T>
struct SearchArgs {
  const T* queries;              // [M, d]
  const int64_t* query_classes;  // [M], sorted
  const int64_t* query_order;    // [M]
  const Key* keys;               // [N, d], rows key_stride apart
  const int64_t* key_classes;    // [N], sorted
  const int64_t* key_order;      // [N]
  int64_t num_queries;
  int64_t num_keys;
  int64_t dim;
  int64_t key_stride;
  int64_t num_shares;
  Nearest<T>* partial;  // [num_shares, M], by position
  T* distance;          // [M]
  int64_t* index;       // [M]

  FASTOOD_HD int64_t num_tiles() const { return ceil_div(num_queries, kSearchQueries); }
  // The orders are not checked, which would synchronise with the device: see finish.
  FASTOOD_HD const T* query(int64_t position) const {
    return queries + readable_index(query_order[position], num_queries) * dim;
  }
  FASTOOD_HD const Key* key(int64_t position) const {
    return keys + readable_index(key_order[position], num_keys) * key_stride;
  }
};

template <typename Key, typename T>
struct NearestSearch {
  using Args = SearchArgs<Key, T>;

  struct State {
    T sums[kSearchQueries][kSearchKeys];
  };

  struct Sum {
    FASTOOD_HD T operator()(T a, T b) const { return a + b; }
  };

  // The queries at positions first…first + count, all of one class, count <= kQueries, against some of its keys.
  template <int kQueries, typename Warp>
  static FASTOOD_HD void compare(Warp& warp, const Args& p, int64_t share, int64_t first, int count, KeyRange range) {
    Nearest<T> nearest[kQueries];
    const T* query[kQueries];
    FASTOOD_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      nearest[q] = Nearest<T>::none();
      query[q] = p.query(first + (q < count ? q : 0));
    }
    for (int64_t at = range.begin; at < range.end; at += kSearchKeys) {
      // Past the end the last key repeats, which never beats itself.
      const Key* key[kSearchKeys];
      FASTOOD_UNROLL
      for (int k = 0; k < kSearchKeys; ++k) {
        key[k] = p.key(at + k < range.end ? at + k : range.end - 1);
      }
      warp.each([&](int lane, State& s) {
        FASTOOD_UNROLL
        for (int q = 0; q < kQueries; ++q) {
          FASTOOD_UNROLL
          for (int k = 0; k < kSearchKeys; ++k) {
            s.sums[q][k] = 0;
          }
        }
        for (int64_t j = lane; j < p.dim; j += kLanes) {
          T feature[kSearchKeys];
          FASTOOD_UNROLL
          for (int k = 0; k < kSearchKeys; ++k) {
            feature[k] = to_compute(key[k][j]);
          }
          FASTOOD_UNROLL
          for (int q = 0; q < kQueries; ++q) {
            const T value = query[q][j];
            FASTOOD_UNROLL
            for (int k = 0; k < kSearchKeys; ++k) {
              s.sums[q][k] += std::fabs(value - feature[k]);
            }
          }
        }
      });
      FASTOOD_UNROLL
      for (int q = 0; q < kQueries; ++q) {
        FASTOOD_UNROLL
        for (int k = 0; k < kSearchKeys; ++k) {
          nearest[q].offer(warp.reduce([&](int, State& s) { return s.sums[q][k]; }, Sum()), at + k);
        }
      }
    }
    warp.each([&](int lane, State&) {
      FASTOOD_UNROLL
      for (int q = 0; q < kQueries; ++q) {
        if (lane == q && q < count) {
          p.partial[share * p.num_queries + first + q] = nearest[q];
        }
      }
    });
  }

  template <typename Warp>
  static FASTOOD_HD void run(Warp& warp, int64_t tile, int64_t share, const Args& p) {
    const int64_t end = (tile + 1) * kSearchQueries < p.num_queries ? (tile + 1) * kSearchQueries : p.num_queries;
    for (int64_t first = tile * kSearchQueries; first < end;) {
      int count = 1;
      while (first + count < end && p.query_classes[first + count] == p.query_classes[first]) {
        ++count;
      }
      const KeyRange keys = keys_of_class(p.key_classes, p.num_keys, p.query_classes[first]);
      const int64_t size = ceil_div(keys.end - keys.begin, p.num_shares);
      const int64_t begin = keys.begin + share * size < keys.end ? keys.begin + share * size : keys.end;
      const KeyRange range{begin, begin + size < keys.end ? begin + size : keys.end};
      if (count == 1) {
        compare<1>(warp, p, share, first, count, range);
      } else if (count == 2) {
        compare<2>(warp, p, share, first, count, range);
      } else if (count <= 4) {
        compare<4>(warp, p, share, first, count, range);
      } else {
        compare<kSearchQueries>(warp, p, share, first, count, range);
      }
      first += count;
    }
  }

  // Writes the result of a row that no position names. Called for every row before other results are written.
  static FASTOOD_HD void clear(int64_t row, const Args& p) {
    p.distance[row] = static_cast<T>(NAN);
    p.index[row] = -1;
  }

  // Writes the result of the query at a position, by one thread, after all shares. A position whose order is out of range has
  // no row; a query whose nearest key is one out of range gets NaN and -1.
  static FASTOOD_HD void finish(int64_t position, const Args& p) {
    Nearest<T> nearest = Nearest<T>::none();
    for (int64_t share = 0; share < p.num_shares; ++share) {
      const Nearest<T> found = p.partial[share * p.num_queries + position];
      nearest.offer(found.distance, found.position);
    }
    const int64_t row = p.query_order[position];
    if (!in_range(row, p.num_queries)) {
      return;
    }
    const KeyRange keys = keys_of_class(p.key_classes, p.num_keys, p.query_classes[position]);
    const int64_t looked_at = keys.begin < keys.end ? p.dim : 0;
    p.distance[row] = distance_or_nan(nearest, p.queries + row * p.dim, looked_at);
    p.index[row] = nearest.position < 0 ? -1 : p.key_order[nearest.position];
    if (nearest.position >= 0 && !in_range(p.index[row], p.num_keys)) {
      clear(row, p);
    }
  }
};

}  // namespace fastood::class_l1_nearest
