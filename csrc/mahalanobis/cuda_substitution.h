// Rows X of triangular systems by a block: X L^-T by forward substitution, or X L^-1 (flip: the same on reversed columns).
//
// Each of 4 warps has kRows rows; a lane has two of 64 columns. For each block of 64 columns, from the left:
//   1) x_c, minus sum_k y_k L_ck over the columns k of all earlier blocks, in chunks of 32 through shared memory;
//   2) the triangle: 32 steps per chunk, in each of which the lane of column j makes y_j = x_j / L_jj and its warp takes
//      y_j L_cj from the columns after it.
// No inverse of a block is formed, and d of any size is one launch: rows are independent, results come back from cache.
// The strict upper triangle of L is never read. A diagonal that is not finite and positive makes its row's results NaN.
// kDiagonal: L is a vector, and 1) and 2) are one multiplication.
//
// Multiply-adds: rows d^2 / 2 in Wide. Bytes from cache: a block reads L once, d^2 / 2 sizeof(T), and its own results
// d / 128 times. kRows = 8 reads 8 wavefronts of shared memory for 16 multiply-adds of a warp, what float64 units at half
// rate keep up with; kRows = 1 makes 8 times as many blocks of a small problem.
#pragma once

#include <cmath>

#include "../common/cuda_program.h"

namespace fastood::mahalanobis {

constexpr int kSubstitutionWarps = 4;
constexpr int kSubstitutionThreads = kSubstitutionWarps * kLanes;
constexpr int kBlockColumns = 2 * kLanes;
constexpr int kChunk = 32;

enum class Factor { kLower, kLowerFlipped, kDiagonal };

FASTOOD_HD int64_t num_substitution_blocks(int64_t num_rows, int rows_per_warp) {
  return ceil_div(num_rows, int64_t{rows_per_warp} * kSubstitutionWarps);
}

// 1 / value of a diagonal of L, NaN where there is no such factor.
template <typename Wide>
FASTOOD_HD Wide reciprocal_of(Wide value) {
  return value > 0 && value < Wide(INFINITY) ? 1 / value : Wide(NAN);
}

template <Factor kFactor, typename T, typename Wide, int kRows>
struct Substitution {
  static constexpr int kFetch = kBlockColumns * kChunk / kSubstitutionThreads;

  struct alignas(kRows > 1 ? 16 : sizeof(Wide)) Lines {
    Wide row[kRows];
  };

  struct Shared {
    Wide factor[kChunk][kBlockColumns + 1];  // L[column][k]; the padding spreads what a column writes over the banks
    Wide reciprocal[kChunk];
    Lines lines[kSubstitutionWarps][kChunk];  // y[row][k]
    double centre[2][kBlockColumns];          // for rows that make their own (CentredRows)
  };

  struct State {
    Wide value[kRows][2];
    Wide pivot[kRows];
    double norm[kRows];
    T next_factor[kFetch];
    T next_diagonal;
    Wide next_line[kRows];
  };

  static FASTOOD_HD int64_t flip(int64_t column, int64_t size) {
    return kFactor == Factor::kLowerFlipped ? size - 1 - column : column;
  }

  // L[row, column] of the lower-triangular factor that the substitution runs on.
  static FASTOOD_HD T factor_at(const T* factor, int64_t size, int64_t row, int64_t column) {
    return kFactor == Factor::kLowerFlipped ? factor[flip(column, size) * size + flip(row, size)]
                                            : factor[row * size + column];
  }

  // Position of element e of a thread's part of a chunk of L; neighbouring threads read neighbouring memory.
  static FASTOOD_HD void place(int thread, int e, int& column, int& k) {
    const int i = thread + e * kSubstitutionThreads;
    column = kFactor == Factor::kLowerFlipped ? i % kBlockColumns : i / kChunk;
    k = kFactor == Factor::kLowerFlipped ? i / kBlockColumns : i % kChunk;
  }

  // Columns k0 .. k0 + 31 of L for the block of columns at `first`, and of this warp's results where they are before it.
  template <typename Rows>
  static FASTOOD_HD void fetch(int thread, State& s, const Rows& rows, const T* factor, int64_t size, int64_t first_row,
                               int64_t first, int64_t k0) {
    FASTOOD_UNROLL
    for (int e = 0; e < kFetch; ++e) {
      int column, k;
      place(thread, e, column, k);
      s.next_factor[e] =
          first + column < size && k0 + k < first + column ? factor_at(factor, size, first + column, k0 + k) : T(0);
    }
    const int64_t k = k0 + thread % kLanes;
    if (k0 >= first) {
      s.next_diagonal = thread < kChunk && k < size ? factor_at(factor, size, k, k) : T(1);
      return;
    }
    FASTOOD_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first_row + thread / kLanes * kRows + r;
      s.next_line[r] = row < rows.num_rows ? rows.result(row, flip(k, size)) : Wide(0);
    }
  }

  static FASTOOD_HD void put(int thread, const State& s, Shared& shared, bool triangle) {
    FASTOOD_UNROLL
    for (int e = 0; e < kFetch; ++e) {
      int column, k;
      place(thread, e, column, k);
      shared.factor[k][column] = static_cast<Wide>(s.next_factor[e]);
    }
    if (!triangle) {
      FASTOOD_UNROLL
      for (int r = 0; r < kRows; ++r) {
        shared.lines[thread / kLanes][thread % kLanes].row[r] = s.next_line[r];
      }
    } else if (thread < kChunk) {
      shared.reciprocal[thread] = reciprocal_of(static_cast<Wide>(s.next_diagonal));
    }
  }

  static FASTOOD_HD void subtract_chunk(int thread, State& s, const Shared& shared) {
    const int lane = thread % kLanes;
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
    for (int k = 0; k < kChunk; ++k) {
      const Lines line = shared.lines[thread / kLanes][k];
      const Wide left = shared.factor[k][lane];
      const Wide right = shared.factor[k][lane + kLanes];
      FASTOOD_UNROLL
      for (int r = 0; r < kRows; ++r) {
        s.value[r][0] -= line.row[r] * left;
        s.value[r][1] -= line.row[r] * right;
      }
    }
  }

  // The 32 columns of the left (half 0) or right half of the block of columns.
  template <int kHalf, typename Block>
  static FASTOOD_HD void solve_half(Block& block, const Shared& shared) {
    for (int step = 0; step < kChunk; ++step) {
      block.each([&](int, State& s) {
        FASTOOD_UNROLL
        for (int r = 0; r < kRows; ++r) {
          s.pivot[r] = s.value[r][kHalf] * shared.reciprocal[step];  // of which lane `step` has the right one
        }
      });
      block.broadcast(&State::pivot, step);
      block.each([&](int thread, State& s) {
        const int lane = thread % kLanes;
        const Wide own = shared.factor[step][lane + kHalf * kLanes];
        FASTOOD_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const Wide below = s.value[r][kHalf] - s.pivot[r] * own;
          s.value[r][kHalf] = lane > step ? below : lane == step ? s.pivot[r] : s.value[r][kHalf];
          if constexpr (kHalf == 0) {
            s.value[r][1] -= s.pivot[r] * shared.factor[step][lane + kLanes];
          }
        }
      });
    }
  }

  // Rows: what the rows are and where the results go; see CentredRows and GradientRows.
  template <typename Block, typename Rows>
  static FASTOOD_HD void run(Block& block, Shared& shared, int64_t block_index, const T* factor, int64_t size,
                             const Rows& rows) {
    const int64_t first_row = block_index * kSubstitutionWarps * kRows;
    const auto row_of = [&](int thread, int r) { return first_row + thread / kLanes * kRows + r; };
    block.each([](int, State& s) {
      FASTOOD_UNROLL
      for (int r = 0; r < kRows; ++r) {
        s.norm[r] = 0;
      }
    });
    for (int64_t first = 0; first < size; first += kBlockColumns) {
      rows.prepare(block, shared, first);
      block.each([&](int thread, State& s) {
        FASTOOD_UNROLL
        for (int r = 0; r < kRows; ++r) {
          FASTOOD_UNROLL
          for (int c = 0; c < 2; ++c) {
            const int offset = thread % kLanes + c * kLanes;
            s.value[r][c] = row_of(thread, r) < rows.num_rows && first + offset < size
                                ? rows.load(shared, row_of(thread, r), flip(first + offset, size), offset)
                                : Wide(0);
          }
        }
      });
      if constexpr (kFactor == Factor::kDiagonal) {
        block.each([&](int thread, State& s) {
          FASTOOD_UNROLL
          for (int c = 0; c < 2; ++c) {
            const int64_t column = first + thread % kLanes + c * kLanes;
            const Wide reciprocal = column < size ? reciprocal_of(static_cast<Wide>(factor[column])) : Wide(0);
            FASTOOD_UNROLL
            for (int r = 0; r < kRows; ++r) {
              s.value[r][c] *= reciprocal;
            }
          }
        });
      } else {
        block.each([&](int thread, State& s) { fetch(thread, s, rows, factor, size, first_row, first, 0); });
        const int64_t end = first + kBlockColumns < size ? first + kBlockColumns : size;
        for (int64_t k0 = 0; k0 < end; k0 += kChunk) {
          const bool triangle = k0 >= first;
          block.each([&](int thread, State& s) { put(thread, s, shared, triangle); });
          block.barrier();
          block.each([&](int thread, State& s) {
            if (k0 + kChunk < end) {
              fetch(thread, s, rows, factor, size, first_row, first, k0 + kChunk);
            }
            if (!triangle) {
              subtract_chunk(thread, s, shared);
            }
          });
          if (k0 == first) {
            solve_half<0>(block, shared);
          } else if (triangle) {
            solve_half<1>(block, shared);
          }
          block.barrier();
        }
      }
      block.each([&](int thread, State& s) {
        FASTOOD_UNROLL
        for (int r = 0; r < kRows; ++r) {
          FASTOOD_UNROLL
          for (int c = 0; c < 2; ++c) {
            const int64_t column = first + thread % kLanes + c * kLanes;
            if (row_of(thread, r) < rows.num_rows && column < size) {
              rows.store(row_of(thread, r), flip(column, size), s.value[r][c]);
              s.norm[r] += static_cast<double>(s.value[r][c]) * static_cast<double>(s.value[r][c]);
            }
          }
        }
      });
      block.barrier();  // the results before the blocks of columns that read them
    }
    if constexpr (Rows::kWantsNorms) {
      block.sum_lanes(&State::norm);
      block.each([&](int thread, State& s) {
        FASTOOD_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (thread % kLanes == 0 && row_of(thread, r) < rows.num_rows) {
            rows.store_norm(row_of(thread, r), s.norm[r]);
          }
        }
      });
    }
  }
};

}  // namespace fastood::mahalanobis
