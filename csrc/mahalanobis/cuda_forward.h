// Mahalanobis logits forward, as programs over threads (cuda_program.h). In order:
//
//   centre   mu = mean of the means, float64: a launch of its own only where K d > kMaxOwnCentre
//   whiten   [Y; C] = ([Z; M] - mu) L^-T in float64, their roundings to T, their squared norms
//   pairs    h_ni = -(|y_n|^2 + |c_i|^2 - 2 y_n . c_i) in T
//   finish   by direct difference of the float64 rows: pairs that are near, then the nearest; its residual
//
// The expansion's error is some roundings of |y|^2 + |c|^2. A pair with D below a quarter of that is near and is
// recomputed; for all others h loses at most two bits of T. h is never positive.
#pragma once

#include "cuda_substitution.h"
#include "cuda_tile.h"

namespace fastood::mahalanobis {

constexpr int64_t kMaxOwnCentre = 1 << 15;  // means that each block of `whiten` may read for itself
constexpr int kCentreGroups = 8;

template <typename T>
struct ForwardArgs {
  const T* features;  // [N, d]
  const T* means;     // [K, d]
  const T* factor;    // L [d, d], or [d] where diagonal
  int64_t num_samples, num_classes, num_features;
  T* logits;          // [N, K]
  T* residual;        // [N, d]: roundings of Y up to `finish`, which leaves L^-1 (z - m_nearest)
  T* whitened_means;  // [K, d]
  int64_t* nearest;   // [N]
  double* whitened;   // [N + K, d]
  T* norms;           // [N + K]
  double* centre;     // [d], or null where each block makes its own

  FASTOOD_HD int64_t num_rows() const { return num_samples + num_classes; }
};

// mu of 32 columns; 256 threads, of which eight groups share the classes.
template <typename T>
struct Centre {
  struct Shared {
    double sum[kCentreGroups][kLanes];
  };
  struct State {};

  template <typename Block>
  static FASTOOD_HD void run(Block& block, Shared& shared, int64_t block_index, const ForwardArgs<T>& p) {
    const int64_t first = block_index * kLanes;
    block.each([&](int thread, State&) {
      const int64_t column = first + thread % kLanes;
      double sum = 0;
      if (column < p.num_features) {
        for (int64_t i = thread / kLanes; i < p.num_classes; i += kCentreGroups) {
          sum += static_cast<double>(p.means[i * p.num_features + column]);
        }
      }
      shared.sum[thread / kLanes][thread % kLanes] = sum;
    });
    block.barrier();
    block.each([&](int thread, State&) {
      const int64_t column = first + thread;
      if (thread < kLanes && column < p.num_features) {
        double sum = shared.sum[0][thread];
        for (int group = 1; group < kCentreGroups; ++group) {
          sum += shared.sum[group][thread];
        }
        p.centre[column] = sum / static_cast<double>(p.num_classes);
      }
    });
  }
};

// The rows of `whiten`: features, then means, each less the centre.
template <typename T>
struct CentredRows {
  static constexpr bool kWantsNorms = true;
  ForwardArgs<T> p;
  int64_t num_rows;

  explicit FASTOOD_HD CentredRows(const ForwardArgs<T>& p_) : p(p_), num_rows(p_.num_rows()) {}

  // The centre's columns for this block of columns. Where blocks make their own, all add up in the same order: one centre.
  template <typename Block, typename Shared>
  FASTOOD_HD void prepare(Block& block, Shared& shared, int64_t first) const {
    if (p.centre == nullptr) {
      block.each([&](int thread, auto&) {
        const int64_t column = first + thread % kBlockColumns;
        double sum = 0;
        if (column < p.num_features) {
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
          for (int64_t i = thread / kBlockColumns; i < p.num_classes; i += 2) {
            sum += static_cast<double>(p.means[i * p.num_features + column]);
          }
        }
        shared.centre[thread / kBlockColumns][thread % kBlockColumns] = sum;
      });
      block.barrier();
    }
    block.each([&](int thread, auto&) {
      if (thread < kBlockColumns && first + thread < p.num_features) {
        double& centre = shared.centre[0][thread];
        centre = p.centre != nullptr ? p.centre[first + thread]
                                     : (centre + shared.centre[1][thread]) / static_cast<double>(p.num_classes);
      }
    });
    block.barrier();
  }

  template <typename Shared>
  FASTOOD_HD double load(const Shared& shared, int64_t row, int64_t column, int offset) const {
    const T value = row < p.num_samples ? p.features[row * p.num_features + column]
                                        : p.means[(row - p.num_samples) * p.num_features + column];
    const double centred = static_cast<double>(value) - shared.centre[0][offset];
    return centred - centred == 0 ? centred : NAN;  // an infinite feature makes its row NaN, as on the CPU
  }

  FASTOOD_HD double result(int64_t row, int64_t column) const { return p.whitened[row * p.num_features + column]; }

  FASTOOD_HD void store(int64_t row, int64_t column, double value) const {
    p.whitened[row * p.num_features + column] = value;
    T* rounded = row < p.num_samples ? p.residual + row * p.num_features
                                     : p.whitened_means + (row - p.num_samples) * p.num_features;
    rounded[column] = static_cast<T>(value);
  }

  FASTOOD_HD void store_norm(int64_t row, double norm) const { p.norms[row] = static_cast<T>(norm); }
};

// D from the expansion, and whether it must be recomputed. `not (>=)`: also where the expansion overflowed.
template <typename T>
FASTOOD_HD T expanded_distance(T norm_y, T norm_c, T product) {
  const T distance = norm_y + norm_c - 2 * product;
  return distance < 0 ? T(0) : distance;
}
template <typename T>
FASTOOD_HD bool is_near(T distance, T norm_y, T norm_c) {
  return !(distance >= T(0.25) * (norm_y + norm_c));
}
// 0 - D rather than -D: no negative zero.
template <typename T>
FASTOOD_HD T logit_of(T distance) {
  return T(0) - distance;
}

template <typename T, int kTile>
struct Pairs {
  using Product = TileProduct<T, kTile>;

  static FASTOOD_HD int64_t num_blocks(const ForwardArgs<T>& p) {
    return ceil_div(p.num_samples, kTile) * ceil_div(p.num_classes, kTile);
  }

  template <typename Block>
  static FASTOOD_HD void run(Block& block, typename Product::Shared& shared, int64_t block_index,
                             const ForwardArgs<T>& p) {
    const int64_t tiles_m = ceil_div(p.num_samples, kTile);
    const TileRange range{
        block_index % tiles_m * kTile, block_index / tiles_m * kTile, p.num_samples, p.num_classes, 0, p.num_features};
    Product::template run<Adjacent::kDepth, Adjacent::kDepth>(
        block, shared, range, [&](int64_t n, int64_t k) { return p.residual[n * p.num_features + k]; },
        [&](int64_t i, int64_t k) { return p.whitened_means[i * p.num_features + k]; },
        [&](int64_t n, int64_t i, T product, T) {
          p.logits[n * p.num_classes + i] =
              logit_of(expanded_distance(p.norms[n], p.norms[p.num_samples + i], product));
        });
  }
};

// One row of logits by one warp.
template <typename T>
struct Finish {
  struct State {
    T largest;
    int64_t position;
  };

  template <typename Warp>
  static FASTOOD_HD T direct_distance(Warp& warp, const ForwardArgs<T>& p, const double* row, int64_t i) {
    const double* mean = p.whitened + (p.num_samples + i) * p.num_features;
    const double distance = warp.reduce(
        [&](int lane, State&) {
          double sum = 0;
          for (int64_t k = lane; k < p.num_features; k += kLanes) {
            const double difference = row[k] - mean[k];
            sum += difference * difference;
          }
          return sum;
        },
        [](double a, double b) { return a + b; });
    return static_cast<T>(distance);
  }

  // The first of the largest logits of the row; 0 where none is above -inf.
  template <typename Warp>
  static FASTOOD_HD int64_t first_largest(Warp& warp, const T* logits, int64_t num_classes) {
    warp.each([&](int lane, State& s) {
      s.largest = -T(INFINITY);
      s.position = num_classes;
      for (int64_t i = lane; i < num_classes; i += kLanes) {
        if (logits[i] > s.largest) {
          s.largest = logits[i];
          s.position = i;
        }
      }
    });
    const T largest = warp.reduce([](int, State& s) { return s.largest; }, [](T a, T b) { return a < b ? b : a; });
    const long long first = warp.reduce(
        [&](int, State& s) { return static_cast<long long>(s.largest == largest ? s.position : num_classes); },
        [](long long a, long long b) { return b < a ? b : a; });
    return first < num_classes ? first : 0;
  }

  template <typename Warp>
  static FASTOOD_HD void run(Warp& warp, int64_t n, const ForwardArgs<T>& p) {
    T* logits = p.logits + n * p.num_classes;
    const double* row = p.whitened + n * p.num_features;
    const T* mean_norms = p.norms + p.num_samples;
    const T norm = p.norms[n];

    // 1) near pairs
    for (int64_t first = 0; first < p.num_classes; first += kLanes) {
      unsigned near = warp.ballot([&](int lane, State&) {
        const int64_t i = first + lane;
        return i < p.num_classes && is_near(-logits[i], norm, mean_norms[i]);
      });
      // Votes and shuffles exchange values and do not order memory: all lanes have read their logits before one is replaced.
      warp.each([](int, State&) {});
      for (; near != 0; near &= near - 1) {
        const int64_t i = first + lowest_bit(near);
        const T distance = direct_distance(warp, p, row, i);
        warp.each([&](int lane, State&) {
          if (lane == 0) {
            logits[i] = logit_of(distance);
          }
        });
      }
    }

    // 2) the largest logit, until it is the one that the direct difference gives
    int64_t nearest;
    for (bool settled = false; !settled;) {
      nearest = first_largest(warp, logits, p.num_classes);
      const T exact = logit_of(direct_distance(warp, p, row, nearest));
      settled = !(logits[nearest] < exact || logits[nearest] > exact);
      warp.each([&](int, State&) {});  // all lanes have read it
      warp.each([&](int lane, State&) {
        if (lane == 0) {
          logits[nearest] = exact;
        }
      });
    }

    // 3) its residual, over the rounding of y that the pairs were made from
    warp.each([&](int lane, State&) {
      const double* mean = p.whitened + (p.num_samples + nearest) * p.num_features;
      for (int64_t k = lane; k < p.num_features; k += kLanes) {
        p.residual[n * p.num_features + k] = static_cast<T>(row[k] - mean[k]);
      }
      if (lane == 0) {
        p.nearest[n] = nearest;
      }
    });
  }
};

}  // namespace fastood::mahalanobis
