// Sums over the samples of each class: P into dC, dZ out of dM (cuda_backward_args.h).
#pragma once

#include "cuda_backward_args.h"

namespace fastood::mahalanobis {

constexpr int kClassWarps = 8;
constexpr int kClassColumns = 4 * kLanes;

// sum_{n: r(n) = i} source[n, :] for one class and 128 columns: eight warps share the samples, then add up in order.
template <typename T>
struct ClassSum {
  struct State {
    T sum[4];
  };
  struct Shared {
    T sum[kClassWarps][kClassColumns];
  };

  static FASTOOD_HD int64_t num_blocks(const BackwardArgs<T>& p) {
    return p.num_classes * ceil_div(p.num_features, kClassColumns);
  }
  static FASTOOD_HD int64_t class_of(int64_t block_index, const BackwardArgs<T>& p) {
    return block_index / ceil_div(p.num_features, kClassColumns);
  }
  static FASTOOD_HD int64_t first_column(int64_t block_index, const BackwardArgs<T>& p) {
    return block_index % ceil_div(p.num_features, kClassColumns) * kClassColumns;
  }

  template <typename Warp>
  static FASTOOD_HD void add_samples(Warp& warp, Shared& shared, int warp_index, int64_t block_index,
                                     const BackwardArgs<T>& p, const T* source) {
    const int64_t i = class_of(block_index, p);
    const int64_t first = first_column(block_index, p);
    const int64_t end = (warp_index + 1) * p.num_samples / kClassWarps;
    warp.each([](int, State& s) {
      FASTOOD_UNROLL
      for (int q = 0; q < 4; ++q) {
        s.sum[q] = 0;
      }
    });
    for (int64_t n0 = warp_index * p.num_samples / kClassWarps; n0 < end; n0 += kLanes) {
      unsigned members = warp.ballot([&](int lane, State&) { return n0 + lane < end && p.nearest[n0 + lane] == i; });
      for (; members != 0; members &= members - 1) {
        const int64_t n = n0 + lowest_bit(members);
        warp.each([&](int lane, State& s) {
          FASTOOD_UNROLL
          for (int q = 0; q < 4; ++q) {
            const int64_t column = first + lane + q * kLanes;
            s.sum[q] += column < p.num_features ? source[n * p.num_features + column] : T(0);
          }
        });
      }
    }
    warp.each([&](int lane, State& s) {
      FASTOOD_UNROLL
      for (int q = 0; q < 4; ++q) {
        shared.sum[warp_index][lane + q * kLanes] = s.sum[q];
      }
    });
  }

  // write(i, column, sum) by the first 128 threads, after a barrier.
  template <typename Write>
  static FASTOOD_HD void finish(int thread, const Shared& shared, int64_t block_index, const BackwardArgs<T>& p,
                                const Write& write) {
    const int64_t column = first_column(block_index, p) + thread;
    if (thread < kClassColumns && column < p.num_features) {
      T sum = shared.sum[0][thread];
      FASTOOD_UNROLL
      for (int w = 1; w < kClassWarps; ++w) {
        sum += shared.sum[w][thread];
      }
      write(class_of(block_index, p), column, sum);
    }
  }

  // dC, in place of the first share of Q.
  static FASTOOD_HD void finish_classes(int thread, const Shared& shared, int64_t block_index,
                                        const BackwardArgs<T>& p) {
    finish(thread, shared, block_index, p, [&](int64_t i, int64_t column, T sum) {
      for (int64_t share = 0; share < p.class_shares; ++share) {
        sum += p.class_gradients[(share * p.num_classes + i) * p.num_features + column];
      }
      p.class_gradients[i * p.num_features + column] = sum;
    });
  }

  static FASTOOD_HD void finish_means(int thread, const Shared& shared, int64_t block_index, const BackwardArgs<T>& p) {
    finish(thread, shared, block_index, p, [&](int64_t i, int64_t column, T sum) {
      const int64_t at = i * p.num_features + column;
      p.grad_means[at] = p.class_gradients[at] - sum;
    });
  }
};

}  // namespace fastood::mahalanobis
