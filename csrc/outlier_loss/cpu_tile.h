// Rows of few classes, kLanes of them at a time, one per lane of a vector: a row of 10 would leave most of a vector empty.
// Part of cpu.cpp: everything here is compiled once per instruction set.
#pragma once

#include "cpu_row.h"

namespace fastood::FASTOOD_CPU_CAPABILITY {
namespace {

// One AVX-512 vector of floats; two of AVX2. At most kRowTile of common/cpu_rows.h.
constexpr int64_t kLanes = 16;
// The tile of 32 x 16 floats stays in the level-1 cache.
constexpr int64_t kMaxClassesAcrossRows = 32;

// Row numbers that share a tile. Lanes past `count` repeat a row, so that every row of a small batch, too, has the bits
// that it would have in any other tile.
struct TileRows {
  int64_t row[kLanes];
  int64_t count = 0;

  void add(int64_t i) { row[count++] = i; }
  void fill() { std::fill(row + count, row + kLanes, row[0]); }
};

template <typename Logit>
using Tile = Compute<Logit>[kMaxClassesAcrossRows * kLanes];

template <typename Logit>
void load_tile(const LossRows<Logit>& rows, const TileRows& which, Tile<Logit>& tile) {
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const Logit* logits = rows.row(which.row[lane]);
    for (int64_t k = 0; k < rows.num_classes; ++k) {
      tile[k * kLanes + lane] = to_compute(logits[k]);
    }
  }
}

template <typename Logit, typename T = Compute<Logit>>
void softmax_tile(const LossRows<Logit>& rows, const Tile<Logit>& tile, RowValue<T>* values) {
  alignas(64) T largest[kLanes];
  alignas(64) T num_largest[kLanes] = {};
  alignas(64) T sum_others[kLanes] = {};
  std::fill_n(largest, kLanes, T(-INFINITY));
  for (int64_t k = 0; k < rows.num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = tile[k * kLanes + lane];
      largest[lane] = largest[lane] < value ? value : largest[lane];
    }
  }
  for (int64_t k = 0; k < rows.num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = tile[k * kLanes + lane];
      const bool is_largest = value == largest[lane];
      const T exponential = exp_fast(value - largest[lane]);
      num_largest[lane] += is_largest ? T(1) : T(0);
      sum_others[lane] += is_largest ? T(0) : exponential;
    }
  }
  alignas(64) T lambda[kLanes];
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    lambda[lane] = softmax_row(largest[lane], num_largest[lane], sum_others[lane]).lambda;
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    values[lane].anchor = largest[lane];
    values[lane].lambda = lambda[lane];
  }
}

// The usual row for all lanes at once; a lane that needs the other form is done again by itself.
template <bool kEntropy, typename Logit, typename T = Compute<Logit>>
void uniformity_tile(const LossRows<Logit>& rows, const TileRows& which, const Tile<Logit>& tile, RowValue<T>* values) {
  const T K = static_cast<T>(rows.num_classes);
  alignas(64) T mean[kLanes] = {};
  alignas(64) T largest[kLanes];
  alignas(64) T anchor[kLanes];
  alignas(64) T deviation[kLanes] = {};
  alignas(64) T exponential[kLanes] = {};
  alignas(64) T product[kLanes] = {};
  std::fill_n(largest, kLanes, T(-INFINITY));
  for (int64_t k = 0; k < rows.num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = tile[k * kLanes + lane];
      mean[lane] += value;
      largest[lane] = largest[lane] < value ? value : largest[lane];
    }
  }
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    mean[lane] /= K;
    anchor[lane] = row_anchor(mean[lane], largest[lane]);
  }
  for (int64_t k = 0; k < rows.num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      UniformitySums<T> one{0, 0, 0};
      add_logit<kEntropy, false>(tile[k * kLanes + lane], anchor[lane], largest[lane], one);
      deviation[lane] += one.deviation;
      exponential[lane] += one.exponential;
      product[lane] += one.product;
    }
  }
  alignas(64) T lambda[kLanes];
  alignas(64) T uniform[kLanes];
  alignas(64) T value[kLanes];
  alignas(64) T centre[kLanes];
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const UniformitySums<double> sums{deviation[lane], exponential[lane], product[lane]};
    const RowValue<T> row = uniformity_row<kEntropy>(anchor[lane], largest[lane], sums, K);
    anchor[lane] = row.anchor;
    lambda[lane] = row.lambda;
    uniform[lane] = row.uniform;
    value[lane] = row.value;
    centre[lane] = row.centre;
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if (needs_shift(mean[lane], largest[lane])) {
      values[lane] = uniformity_value<kEntropy>(rows.row(which.row[lane]), rows.num_classes);
    } else {
      values[lane] = {anchor[lane], lambda[lane], uniform[lane], value[lane], centre[lane], 0};
    }
  }
}

template <typename Logit, typename T = Compute<Logit>>
void tile_values(const LossRows<Logit>& rows, const TileRows& which, RowTerm term, bool wants_class,
                 RowValue<T>* values) {
  if (term == RowTerm::kMaximum || term == RowTerm::kNorm) {  // no exponential to fill a vector with
    for (int64_t lane = 0; lane < which.count; ++lane) {
      values[lane] = row_value(rows.row(which.row[lane]), rows.num_classes, term, wants_class);
    }
    return;
  }
  alignas(64) Tile<Logit> tile;
  load_tile(rows, which, tile);
  if (term == RowTerm::kUniformity) {
    uniformity_tile<false>(rows, which, tile, values);
  } else if (term == RowTerm::kEntropy) {
    uniformity_tile<true>(rows, which, tile, values);
  } else {
    softmax_tile(rows, tile, values);
    for (int64_t lane = 0; wants_class && lane < which.count; ++lane) {
      const Logit* logits = rows.row(which.row[lane]);
      values[lane].largest_class = first_class_of(logits, rows.num_classes, values[lane].anchor);
    }
  }
}

// num_rows <= kLanes rows from row_stats on, their logits laid out flat, so that the exponentials fill whole vectors.
// For all terms but kNorm and kMaximum the gradient is (exp(x) - y) scale (x - centre)^p, p = 1 for the entropy alone; at
// the target of a softmax row y = extra / scale.
template <bool kEntropy, typename Logit, typename T = Compute<Logit>>
void backward_tile(const LossRows<Logit>& rows, int64_t first, int64_t count, OutlierLoss loss, const T* row_stats,
                   double factor_id, double factor_background, Logit* grad) {
  const int64_t K = rows.num_classes;
  alignas(64) T x[kMaxClassesAcrossRows * kLanes];
  alignas(64) T y[kMaxClassesAcrossRows * kLanes];
  alignas(64) T scale[kMaxClassesAcrossRows * kLanes];
  alignas(64) T centre[kEntropy ? kMaxClassesAcrossRows * kLanes : 1];
  int64_t unscaled[kLanes];
  T unscaled_value[kLanes];
  int64_t num_unscaled = 0;
  for (int64_t lane = 0; lane < count; ++lane) {
    const RowGradient<T> row(loss, row_stats + kRowStats * lane, factor_id, factor_background);
    const Logit* logits = rows.row(first + lane);
    const bool entropy = row.term == RowTerm::kEntropy && row.scale != T(0);
    const T subtracted = row.term == RowTerm::kUniformity && row.scale != T(0) ? row.extra : T(0);
    for (int64_t k = 0; k < K; ++k) {
      x[lane * K + k] = row.scale == T(0) ? T(0) : (to_compute(logits[k]) - row.anchor) - row.lambda;
      y[lane * K + k] = subtracted;
      scale[lane * K + k] = row.scale;
      if constexpr (kEntropy) {
        centre[lane * K + k] = entropy ? row.extra : T(INFINITY);
      }
    }
    if (row.target != kNoTarget) {
      if (row.scale == T(0)) {
        unscaled[num_unscaled] = lane * K + row.target;
        unscaled_value[num_unscaled++] = -row.extra;
      } else {
        y[lane * K + row.target] = row.extra / row.scale;
      }
    }
  }
#pragma omp simd
  for (int64_t j = 0; j < count * K; ++j) {
    T gradient = exp_minus(x[j], y[j]) * scale[j];
    if constexpr (kEntropy) {
      const T of_entropy = entropy_gradient(x[j], centre[j]) * scale[j];
      gradient = centre[j] == T(INFINITY) ? gradient : of_entropy;
    }
    grad[j] = FromCompute<Logit>::convert(gradient);
  }
  for (int64_t j = 0; j < num_unscaled; ++j) {
    grad[unscaled[j]] = FromCompute<Logit>::convert(unscaled_value[j]);
  }
}

}  // namespace
}  // namespace fastood::FASTOOD_CPU_CAPABILITY
