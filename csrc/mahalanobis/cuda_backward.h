// The programs of the backward pass but for the class sums; cuda_backward_args.h says what they compute.
#pragma once

#include "cuda_backward_args.h"
#include "cuda_substitution.h"
#include "cuda_tile.h"

namespace fastood::mahalanobis {

constexpr int kDiagonalGroups = 8;

// P and dU for tiles of samples, then Q for tiles of classes.
template <typename T, int kTile>
struct PairGradients {
  using Product = TileProduct<T, kTile>;

  static FASTOOD_HD int64_t num_sample_tiles(const BackwardArgs<T>& p) {
    return ceil_div(p.num_samples, kTile) * ceil_div(p.num_features, kTile);
  }
  static FASTOOD_HD int64_t num_class_tiles(const BackwardArgs<T>& p) {
    return ceil_div(p.num_classes, kTile) * ceil_div(p.num_features, kTile);
  }
  static FASTOOD_HD int64_t num_blocks(const BackwardArgs<T>& p) {
    return num_sample_tiles(p) + num_class_tiles(p) * p.class_shares;
  }

  template <typename Block>
  static FASTOOD_HD void run(Block& block, typename Product::Shared& shared, int64_t block_index,
                             const BackwardArgs<T>& p) {
    const int64_t d = p.num_features;
    const int64_t tiles_d = ceil_div(d, kTile);
    if (block_index < num_sample_tiles(p)) {
      const TileRange range{
          block_index / tiles_d * kTile, block_index % tiles_d * kTile, p.num_samples, d, 0, p.num_classes};
      Product::template run<Adjacent::kDepth, Adjacent::kLine>(
          block, shared, range, [&](int64_t n, int64_t i) { return p.other_grad(n, i); },
          [&](int64_t j, int64_t i) { return p.whitened_means[i * d + j]; },
          [&](int64_t n, int64_t j, T product, T row_sum) {
            const T own = p.own_grad(n);
            const T gradient = -2 * (row_sum * p.whitened(n, j) - product);
            p.sample_gradients[n * d + j] = gradient;
            p.grad_features[n * d + j] = gradient - 2 * own * p.residual[n * d + j];
          });
      return;
    }
    const int64_t tile = (block_index - num_sample_tiles(p)) % num_class_tiles(p);
    const int64_t share = (block_index - num_sample_tiles(p)) / num_class_tiles(p);
    T* out = p.class_gradients + share * p.num_classes * d;
    const TileRange range{tile / tiles_d * kTile,
                          tile % tiles_d * kTile,
                          p.num_classes,
                          d,
                          share * p.num_samples / p.class_shares,
                          (share + 1) * p.num_samples / p.class_shares};
    Product::template run<Adjacent::kLine, Adjacent::kLine>(
        block, shared, range, [&](int64_t i, int64_t n) { return p.other_grad(n, i); },
        [&](int64_t j, int64_t n) { return p.whitened(n, j); },
        [&](int64_t i, int64_t j, T product, T column_sum) {
          out[i * d + j] = 2 * (product - column_sum * p.whitened_means[i * d + j]);
        });
  }
};

// The rows of `solve`: dU, then dC; the results in their place.
template <typename T>
struct GradientRows {
  static constexpr bool kWantsNorms = false;
  BackwardArgs<T> p;
  int64_t num_rows;

  explicit FASTOOD_HD GradientRows(const BackwardArgs<T>& p_) : p(p_), num_rows(p_.num_rows()) {}

  template <typename Block, typename Shared>
  FASTOOD_HD void prepare(Block&, Shared&, int64_t) const {}

  FASTOOD_HD T* at(int64_t row, int64_t column) const {
    return row < p.num_samples ? p.grad_features + row * p.num_features + column
                               : p.class_gradients + (row - p.num_samples) * p.num_features + column;
  }

  template <typename Shared>
  FASTOOD_HD T load(const Shared&, int64_t row, int64_t column, int) const {
    T value = *at(row, column);
    if (row >= p.num_samples && p.own_class_sums) {
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
      for (int64_t n = 0; n < p.num_samples; ++n) {
        if (p.nearest[n] == row - p.num_samples) {
          value += p.sample_gradients[n * p.num_features + column];
        }
      }
    }
    return value;
  }

  FASTOOD_HD T result(int64_t row, int64_t column) const { return *at(row, column); }
  FASTOOD_HD void store(int64_t row, int64_t column, T value) const { *at(row, column) = value; }
  FASTOOD_HD void store_norm(int64_t, double) const {}
};

// Tiles of dL (or of their shares); the strict upper triangle is zero.
template <typename T, int kTile>
struct FactorGradient {
  using Product = TileProduct<T, kTile>;

  static FASTOOD_HD int64_t num_tiles(int64_t d) { return ceil_div(d, kTile) * ceil_div(d, kTile); }
  static FASTOOD_HD int64_t num_blocks(const BackwardArgs<T>& p) { return num_tiles(p.num_features) * p.factor_shares; }

  template <typename Block>
  static FASTOOD_HD void run(Block& block, typename Product::Shared& shared, int64_t block_index,
                             const BackwardArgs<T>& p) {
    const int64_t d = p.num_features;
    const int64_t tiles_d = ceil_div(d, kTile);
    const int64_t tile = block_index % num_tiles(d);
    const int64_t share = block_index / num_tiles(d);
    const bool above = tile % tiles_d > tile / tiles_d;
    const bool whole = p.factor_shares == 1;
    const int64_t begin = share * p.num_rows() / p.factor_shares;
    const int64_t end = (share + 1) * p.num_rows() / p.factor_shares;
    const TileRange range{tile / tiles_d * kTile, tile % tiles_d * kTile, d, d, begin, above ? begin : end};
    Product::template run<Adjacent::kLine, Adjacent::kLine>(
        block, shared, range,
        [&](int64_t a, int64_t k) {
          return k < p.num_samples ? p.grad_features[k * d + a] : p.class_gradients[(k - p.num_samples) * d + a];
        },
        [&](int64_t b, int64_t k) {
          return k < p.num_samples ? p.residual[k * d + b] : p.whitened_means[(k - p.num_samples) * d + b];
        },
        [&](int64_t a, int64_t b, T product, T) {
          if (whole) {
            p.grad_factor[a * d + b] = b > a ? T(0) : -product;
          } else if (b <= a) {
            p.factor_gradients[share * d * d + a * d + b] = product;
          }
        });
  }
};

// The same of a diagonal L: 32 columns by 256 threads, of which eight groups share the rows.
template <typename T>
struct DiagonalGradient {
  struct State {};
  struct Shared {
    T sum[kDiagonalGroups][kLanes];
  };

  static FASTOOD_HD int64_t num_blocks(const BackwardArgs<T>& p) {
    return ceil_div(p.num_features, kLanes) * p.factor_shares;
  }

  template <typename Block>
  static FASTOOD_HD void run(Block& block, Shared& shared, int64_t block_index, const BackwardArgs<T>& p) {
    const int64_t d = p.num_features;
    const int64_t groups = ceil_div(d, kLanes);
    const int64_t first = block_index % groups * kLanes;
    const int64_t share = block_index / groups;
    const int64_t end = (share + 1) * p.num_rows() / p.factor_shares;
    block.each([&](int thread, State&) {
      const int64_t j = first + thread % kLanes;
      T sum = 0;
      for (int64_t k = share * p.num_rows() / p.factor_shares + thread / kLanes; j < d && k < end;
           k += kDiagonalGroups) {
        const int64_t i = k - p.num_samples;
        sum += i < 0 ? p.grad_features[k * d + j] * p.residual[k * d + j]
                     : p.class_gradients[i * d + j] * p.whitened_means[i * d + j];
      }
      shared.sum[thread / kLanes][thread % kLanes] = sum;
    });
    block.barrier();
    block.each([&](int thread, State&) {
      if (thread < kLanes && first + thread < d) {
        T sum = shared.sum[0][thread];
        for (int group = 1; group < kDiagonalGroups; ++group) {
          sum += shared.sum[group][thread];
        }
        T* out = p.factor_shares == 1 ? p.grad_factor : p.factor_gradients + share * d;
        out[first + thread] = p.factor_shares == 1 ? -sum : sum;
      }
    });
  }
};

// One entry of dL from its shares.
template <typename T>
FASTOOD_HD void sum_factor_shares(int64_t at, const BackwardArgs<T>& p) {
  const int64_t size = p.factor_size();
  T sum = 0;
  if (p.diagonal || at % p.num_features <= at / p.num_features) {
    for (int64_t share = 0; share < p.factor_shares; ++share) {
      sum -= p.factor_gradients[share * size + at];
    }
  }
  p.grad_factor[at] = sum;
}

}  // namespace fastood::mahalanobis
