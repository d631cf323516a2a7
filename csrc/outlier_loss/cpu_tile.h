// kLanes rows of one kind at a time. Part of cpu.cpp: everything here is compiled once per instruction set.
//
// The sums over classes are taken along each row, or, for few classes, across the rows of the tile, one per lane of a
// vector: a row of 10 would leave most of a vector empty. What follows from the sums is computed for all rows at once.
#pragma once

#include "cpu_row.h"

namespace fastood::outlier_loss::FASTOOD_CPU_CAPABILITY {
namespace {

// Up to here sums are taken across rows; the tile of 32 x 16 floats stays in the level-1 cache.
constexpr int64_t kMaxClassesAcrossRows = 32;

// The numbers of the rows of a tile. Lanes past `count` repeat a row, so that every row, also of a small batch, has the
// bits that it would have in any other tile.
struct TileRows {
  int64_t row[kLanes];
  int64_t count = 0;

  void add(int64_t i) { row[count++] = i; }
  void fill() { std::fill(row + count, row + kLanes, row[0]); }
};

// A row per lane; lanes without a row stay zero, and their results are not read.
template <typename T>
struct TileSums {
  alignas(64) T mean[kLanes];
  alignas(64) T largest[kLanes];
  alignas(64) double deviation[kLanes];
  alignas(64) double exponential[kLanes];
  alignas(64) double product[kLanes];

  void set(int64_t lane, const RowSums<double>& sums) {
    deviation[lane] = sums.deviation;
    exponential[lane] = sums.exponential;
    product[lane] = sums.product;
  }
};

template <typename T>
struct Tile {
  alignas(64) T value[kMaxClassesAcrossRows * kLanes];  // [K, kLanes]
  int64_t num_classes;

  template <typename Logit>
  Tile(const LossRows<Logit>& rows, const TileRows& which) : num_classes(rows.num_classes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const Logit* logits = rows.row(which.row[lane]);
      for (int64_t k = 0; k < num_classes; ++k) {
        value[k * kLanes + lane] = to_compute(logits[k]);
      }
    }
  }
};

template <typename T>
void softmax_sums_across(const Tile<T>& tile, TileSums<T>& sums) {
  alignas(64) T largest[kLanes];
  alignas(64) T num_largest[kLanes] = {};
  alignas(64) T others[kLanes] = {};
  std::fill_n(largest, kLanes, T(-INFINITY));
  for (int64_t k = 0; k < tile.num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = tile.value[k * kLanes + lane];
      largest[lane] = largest[lane] < value ? value : largest[lane];
    }
  }
  for (int64_t k = 0; k < tile.num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = tile.value[k * kLanes + lane];
      const T is_largest = value == largest[lane] ? T(1) : T(0);
      num_largest[lane] += is_largest;
      others[lane] += exp_fast(value - largest[lane]) - is_largest;
    }
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    sums.largest[lane] = largest[lane];
    sums.deviation[lane] = num_largest[lane];
    sums.exponential[lane] = others[lane];
  }
}

template <typename T>
void mean_and_max_across(const Tile<T>& tile, TileSums<T>& sums) {
  alignas(64) T mean[kLanes] = {};
  alignas(64) T largest[kLanes];
  std::fill_n(largest, kLanes, T(-INFINITY));
  for (int64_t k = 0; k < tile.num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = tile.value[k * kLanes + lane];
      mean[lane] += value;
      largest[lane] = largest[lane] < value ? value : largest[lane];
    }
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    sums.mean[lane] = mean[lane] / static_cast<T>(tile.num_classes);
    sums.largest[lane] = largest[lane];
  }
}

// After mean_and_max_across. The usual form; a row that needs the shifted form discards these sums.
template <bool kEntropy, typename T>
void uniformity_sums_across(const Tile<T>& tile, TileSums<T>& sums) {
  const T K = static_cast<T>(tile.num_classes);
  alignas(64) T base[kLanes];
  alignas(64) T shift[kLanes];
  alignas(64) T deviation[kLanes] = {};
  alignas(64) T exponential[kLanes] = {};
  alignas(64) T product[kLanes] = {};
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const T mean = sums.mean[lane];
    const T largest = sums.largest[lane];
    base[lane] = kEntropy ? entropy_base(mean, largest, K) : row_anchor(mean, largest);
    shift[lane] = kEntropy && entropy_needs_shift(mean, largest, K) ? T(1) : T(0);
  }
  for (int64_t k = 0; k < tile.num_classes; ++k) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      RowSums<T> one{0, 0, 0};
      if constexpr (kEntropy) {
        add_entropy(tile.value[k * kLanes + lane], base[lane], shift[lane] != T(0), one);
      } else {
        add_uniformity<false>(tile.value[k * kLanes + lane], base[lane], base[lane], one);
      }
      deviation[lane] += one.deviation;
      exponential[lane] += one.exponential;
      product[lane] += one.product;
    }
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    sums.set(lane, {deviation[lane], exponential[lane], product[lane]});
  }
}

template <typename Logit, typename T = Compute<Logit>>
void softmax_values(const LossRows<Logit>& rows, const TileRows& which, bool wants_class, RowValue<T>* values) {
  TileSums<T> sums;
  if (rows.num_classes <= kMaxClassesAcrossRows) {
    softmax_sums_across(Tile<T>(rows, which), sums);
  } else {
    sums = TileSums<T>();
    for (int64_t lane = 0; lane < which.count; ++lane) {
      const Logit* logits = rows.row(which.row[lane]);
      sums.largest[lane] = row_max(logits, rows.num_classes);
      sums.set(lane, softmax_sums(logits, rows.num_classes, sums.largest[lane]));
    }
  }
  alignas(64) T lambda[kLanes];
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const T num_largest = static_cast<T>(sums.deviation[lane]);
    lambda[lane] = softmax_row(sums.largest[lane], num_largest, static_cast<T>(sums.exponential[lane])).lambda;
  }
  for (int64_t lane = 0; lane < which.count; ++lane) {
    values[lane] = RowValue<T>();
    values[lane].anchor = sums.largest[lane];
    values[lane].lambda = lambda[lane];
    if (wants_class) {
      values[lane].largest_class = first_class_of(rows.row(which.row[lane]), rows.num_classes, sums.largest[lane]);
    }
  }
}

// All rows at once, but for a uniformity row that needs the shifted form: it is computed again on its own.
template <bool kEntropy, typename Logit, typename T = Compute<Logit>>
void uniformity_values(const LossRows<Logit>& rows, const TileRows& which, RowValue<T>* values) {
  const T K = static_cast<T>(rows.num_classes);
  TileSums<T> sums;
  if (rows.num_classes <= kMaxClassesAcrossRows) {
    const Tile<T> tile(rows, which);
    mean_and_max_across(tile, sums);
    uniformity_sums_across<kEntropy>(tile, sums);
  } else {
    sums = TileSums<T>();
    for (int64_t lane = 0; lane < which.count; ++lane) {
      const Logit* logits = rows.row(which.row[lane]);
      const auto [mean, largest] = mean_and_max(logits, rows.num_classes);
      sums.mean[lane] = mean;
      sums.largest[lane] = largest;
      if constexpr (kEntropy) {
        sums.set(lane, entropy_needs_shift(mean, largest, K) ? entropy_sums<true>(logits, rows.num_classes, largest)
                                                             : entropy_sums<false>(logits, rows.num_classes, mean));
      } else if (!needs_shift(mean, largest)) {
        sums.set(lane, uniformity_sums<false>(logits, rows.num_classes, mean, largest));
      }
    }
  }
  alignas(64) T anchor[kLanes];
  alignas(64) T lambda[kLanes];
  alignas(64) T uniform[kLanes];
  alignas(64) T value[kLanes];
  alignas(64) T centre[kLanes];
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const RowSums<double> one{sums.deviation[lane], sums.exponential[lane], sums.product[lane]};
    const RowValue<T> row = kEntropy ? entropy_row(sums.mean[lane], sums.largest[lane], one, K)
                                     : uniformity_row(sums.mean[lane], sums.largest[lane], one, K);
    anchor[lane] = row.anchor;
    lambda[lane] = row.lambda;
    uniform[lane] = row.uniform;
    value[lane] = row.value;
    centre[lane] = row.centre;
  }
  for (int64_t lane = 0; lane < which.count; ++lane) {
    values[lane] = {anchor[lane], lambda[lane], uniform[lane], value[lane], centre[lane], 0};
    if (!kEntropy && needs_shift(sums.mean[lane], sums.largest[lane])) {
      values[lane] =
          uniformity_value_shifted(rows.row(which.row[lane]), rows.num_classes, sums.mean[lane], sums.largest[lane]);
    }
  }
}

// The statistics that the loss needs of each row, all rows of one kind.
template <typename Logit, typename T = Compute<Logit>>
void tile_values(const LossRows<Logit>& rows, const TileRows& which, RowTerm term, bool wants_class,
                 RowValue<T>* values) {
  if (term == RowTerm::kUniformity) {
    return uniformity_values<false>(rows, which, values);
  }
  if (term == RowTerm::kEntropy) {
    return uniformity_values<true>(rows, which, values);
  }
  if (term == RowTerm::kSoftmax) {
    return softmax_values(rows, which, wants_class, values);
  }
  for (int64_t lane = 0; lane < which.count; ++lane) {
    const Logit* logits = rows.row(which.row[lane]);
    values[lane] =
        term == RowTerm::kMaximum ? maximum_value(logits, rows.num_classes) : norm_value(logits, rows.num_classes);
  }
}

// Rows of few classes, `count` <= kLanes of them from `first` on: their logits are laid out flat, so that the exponentials
// fill whole vectors. The gradient is (exp(x) - y) scale, where y = extra / scale at the target, or for entropy rows
// exp(x) (x - centre) scale; centre is infinite for the others. Not for kNorm.
template <bool kEntropy, typename Logit, typename T = Compute<Logit>>
void backward_few_classes(const LossRows<Logit>& rows, int64_t first, int64_t count, OutlierLoss loss,
                          const T* row_stats,  // [count, kRowStats]
                          double factor_id, double factor_background,
                          Logit* grad) {  // [count, K]
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
    const bool scaled = row.scale != T(0);
    const T subtracted = row.term == RowTerm::kUniformity && scaled ? row.extra : T(0);
    for (int64_t k = 0; k < K; ++k) {
      x[lane * K + k] = scaled ? (to_compute(logits[k]) - row.anchor) - row.lambda : T(0);
      y[lane * K + k] = subtracted;
      scale[lane * K + k] = row.scale;
      if constexpr (kEntropy) {
        centre[lane * K + k] = row.term == RowTerm::kEntropy && scaled ? row.extra : T(INFINITY);
      }
    }
    if (row.target != kNoTarget && scaled) {
      y[lane * K + row.target] = row.extra / row.scale;
    } else if (row.target != kNoTarget) {
      unscaled[num_unscaled] = lane * K + row.target;
      unscaled_value[num_unscaled++] = -row.extra;
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
}  // namespace fastood::outlier_loss::FASTOOD_CPU_CAPABILITY
