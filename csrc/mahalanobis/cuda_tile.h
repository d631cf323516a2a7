// One tile of a matrix product C[m, n] = sum_k A(m, k) B(n, k) by a block: plain multiply-adds in T. Not tensor cores, and no
// library that may use TF32 (torch.set_float32_matmul_precision): the logits must not depend on it.
//
// 256 threads as 16 x 16, each with F x F outputs, F = tile / 16. A chunk of `depth` columns k of A and B is in shared
// memory, while the next one is loaded to registers. Per k a thread reads 2 F numbers for F^2 multiply-adds: F = 4
// keeps the float32 units busy; F = 2 makes more blocks of a small problem.
// Bytes from cache: tile (M N K) (1/tile + 1/tile) sizeof(T). Past the edges operands count as 0.
#pragma once

#include "../common/cuda_program.h"

namespace fastood::mahalanobis {

constexpr int kTileThreads = 256;
constexpr int kTileSide = 16;  // threads along each side

// The index along which an operand is adjacent in memory, which neighbouring threads follow.
enum class Adjacent { kDepth, kLine };

struct TileRange {
  int64_t m0, n0;        // first line of A and of B
  int64_t num_m, num_n;  // lines there are
  int64_t k_begin, k_end;
};

template <typename T, int kTile>
struct TileProduct {
  static constexpr int kFragment = kTile / kTileSide;
  static constexpr int kDepth = 1024 / kTile;  // four numbers a thread and operand
  static constexpr int kFetch = kTile * kDepth / kTileThreads;

  struct alignas(kFragment * sizeof(T)) Fragment {
    T at[kFragment];
  };

  struct Shared {
    // One fragment of padding spreads the columns that neighbouring threads write over the banks.
    Fragment a[kDepth][kTileSide + 1];
    Fragment b[kDepth][kTileSide + 1];
  };

  struct State {
    T product[kFragment][kFragment];
    T line_sum[kFragment];  // sum_k A(m, k)
    T next_a[kFetch];
    T next_b[kFetch];
  };

  // Position of element e of the thread's part of a chunk.
  template <Adjacent kAdjacent>
  static FASTOOD_HD void place(int thread, int e, int& line, int& depth) {
    const int i = thread + e * kTileThreads;
    line = kAdjacent == Adjacent::kDepth ? i / kDepth : i % kTile;
    depth = kAdjacent == Adjacent::kDepth ? i % kDepth : i / kTile;
  }

  template <Adjacent kAdjacent, typename Operand>
  static FASTOOD_HD void fetch(int thread, const Operand& operand, int64_t first_line, int64_t num_lines, int64_t k0,
                               int64_t k_end, T (&next)[kFetch]) {
    FASTOOD_UNROLL
    for (int e = 0; e < kFetch; ++e) {
      int line, depth;
      place<kAdjacent>(thread, e, line, depth);
      next[e] = first_line + line < num_lines && k0 + depth < k_end ? operand(first_line + line, k0 + depth) : T(0);
    }
  }

  template <Adjacent kAdjacent>
  static FASTOOD_HD void put(int thread, const T (&next)[kFetch], Fragment (&chunk)[kDepth][kTileSide + 1]) {
    FASTOOD_UNROLL
    for (int e = 0; e < kFetch; ++e) {
      int line, depth;
      place<kAdjacent>(thread, e, line, depth);
      chunk[depth][line / kFragment].at[line % kFragment] = next[e];
    }
  }

  // write(m, n, sum_k A(m, k) B(n, k), sum_k A(m, k)) for the tile's share of the output.
  template <Adjacent kA, Adjacent kB, typename Block, typename A, typename B, typename Write>
  static FASTOOD_HD void run(Block& block, Shared& shared, const TileRange& range, const A& a, const B& b,
                             const Write& write) {
    const auto fetch_chunk = [&](int thread, State& s, int64_t k0) {
      fetch<kA>(thread, a, range.m0, range.num_m, k0, range.k_end, s.next_a);
      fetch<kB>(thread, b, range.n0, range.num_n, k0, range.k_end, s.next_b);
    };
    block.each([&](int thread, State& s) {
      FASTOOD_UNROLL
      for (int i = 0; i < kFragment; ++i) {
        s.line_sum[i] = 0;
        FASTOOD_UNROLL
        for (int j = 0; j < kFragment; ++j) {
          s.product[i][j] = 0;
        }
      }
      fetch_chunk(thread, s, range.k_begin);
    });
    for (int64_t k0 = range.k_begin; k0 < range.k_end; k0 += kDepth) {
      block.each([&](int thread, State& s) {
        put<kA>(thread, s.next_a, shared.a);
        put<kB>(thread, s.next_b, shared.b);
      });
      block.barrier();
      block.each([&](int thread, State& s) {
        fetch_chunk(thread, s, k0 + kDepth);
        multiply(thread, shared, s);
      });
      block.barrier();
    }
    block.each([&](int thread, State& s) {
      FASTOOD_UNROLL
      for (int i = 0; i < kFragment; ++i) {
        const int64_t m = range.m0 + thread / kTileSide * kFragment + i;
        FASTOOD_UNROLL
        for (int j = 0; j < kFragment; ++j) {
          const int64_t n = range.n0 + thread % kTileSide * kFragment + j;
          if (m < range.num_m && n < range.num_n) {
            write(m, n, s.product[i][j], s.line_sum[i]);
          }
        }
      }
    });
  }

  static FASTOOD_HD void multiply(int thread, const Shared& shared, State& s) {
    FASTOOD_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      const Fragment a = shared.a[k][thread / kTileSide];
      const Fragment b = shared.b[k][thread % kTileSide];
      FASTOOD_UNROLL
      for (int i = 0; i < kFragment; ++i) {
        s.line_sum[i] += a.at[i];
        FASTOOD_UNROLL
        for (int j = 0; j < kFragment; ++j) {
          s.product[i][j] += a.at[i] * b.at[j];
        }
      }
    }
  }
};

}  // namespace fastood::mahalanobis
