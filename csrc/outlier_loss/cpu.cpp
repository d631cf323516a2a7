// Outlier losses on the CPU. Compiled once per instruction set: see common/cpu_capability.h.
//
// Bytes: forward reads N K logits, backward reads them and writes the gradient. Operations: one exponential per logit and
// pass, about 25 vector instructions; with AVX-512 both passes are bound by memory from a few MiB on.
// Rows of one kind (in-distribution, background) are taken sixteen at a time, in any order (cpu_tile.h);
// sums are taken along a row (cpu_row.h) or, for few classes, across rows.
#include "cpu.h"

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

#include "cpu_tile.h"

namespace fastood::outlier_loss::FASTOOD_CPU_CAPABILITY {
namespace {

// The rows of a tile, all in-distribution or all background, from sums to losses and statistics.
template <typename Logit, typename T = Compute<Logit>>
void finish_tile(const LossRows<Logit>& rows, const LossSettings& settings, bool background, TileRows& which,
                 T* per_sample, T* row_stats) {
  RowValue<T> values[kLanes];
  which.fill();
  tile_values(rows, which, row_term(settings.loss, background), background && needs_largest_class(settings.loss),
              values);
  for (int64_t lane = 0; lane < which.count; ++lane) {
    const int64_t i = which.row[lane];
    const Logit* logits = rows.row(i);
    per_sample[i] = finish_row(
        settings, values[lane], rows.num_classes, rows.target(i), rows.weight == nullptr ? T(1) : rows.weight[i],
        rows.uniform01 == nullptr ? T(0) : rows.uniform01[i], [logits](int64_t k) { return to_compute(logits[k]); },
        row_stats + kRowStats * i);
  }
  which.count = 0;
}

}  // namespace

template <typename Logit>
void outlier_loss_forward(const LossRows<Logit>& rows, const LossSettings& settings, Compute<Logit>* per_sample,
                          Compute<Logit>* row_stats) {
  TileRows tiles[2];
  for (int64_t i = 0; i < rows.num_rows; ++i) {
    const bool background = rows.target(i) < 0;
    tiles[background].add(i);
    if (tiles[background].count == kLanes) {
      finish_tile(rows, settings, background, tiles[background], per_sample, row_stats);
    }
  }
  for (const bool background : {false, true}) {
    if (tiles[background].count > 0) {
      finish_tile(rows, settings, background, tiles[background], per_sample, row_stats);
    }
  }
}

template <typename Logit>
void outlier_loss_backward(const LossRows<Logit>& rows, OutlierLoss loss, const Compute<Logit>* row_stats,
                           double factor_id, double factor_background, Logit* grad_logits) {
  const int64_t K = rows.num_classes;
  if (K <= kMaxClassesAcrossRows && loss != OutlierLoss::kMagnitude) {
    const auto backward =
        loss == OutlierLoss::kEntropy ? backward_few_classes<true, Logit> : backward_few_classes<false, Logit>;
    for (int64_t i = 0; i < rows.num_rows; i += kLanes) {
      backward(rows, i, std::min(kLanes, rows.num_rows - i), loss, row_stats + kRowStats * i, factor_id,
               factor_background, grad_logits + i * K);
    }
    return;
  }
  for (int64_t i = 0; i < rows.num_rows; ++i) {
    const RowGradient<Compute<Logit>> gradient(loss, row_stats + kRowStats * i, factor_id, factor_background);
    backward_row(rows.row(i), K, gradient, grad_logits + i * K);
  }
}

// kLanes sums side by side, each over every kLanes-th row: one sum would be a chain of dependent additions.
template <typename Logit>
void outlier_loss_totals(const LossRows<Logit>& rows, bool by_weight, const Compute<Logit>* per_sample, RowTotals* id,
                         RowTotals* background) {
  alignas(64) double loss[2][kLanes] = {};
  alignas(64) double divisor[2][kLanes] = {};
  for (int64_t i = 0; i < rows.num_rows; ++i) {
    RowTotals row{0, 0};
    add_row(row, rows.weight == nullptr ? 1.0 : rows.weight[i], per_sample == nullptr ? 0.0 : per_sample[i], by_weight);
    const bool is_background = rows.target(i) < 0;
    const int64_t lane = i % kLanes;
    loss[0][lane] += is_background ? 0 : row.loss;
    loss[1][lane] += is_background ? row.loss : 0;
    divisor[0][lane] += is_background ? 0 : row.divisor;
    divisor[1][lane] += is_background ? row.divisor : 0;
  }
  *id = *background = {0, 0};
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    id->loss += loss[0][lane];
    id->divisor += divisor[0][lane];
    background->loss += loss[1][lane];
    background->divisor += divisor[1][lane];
  }
}

#define FASTOOD_INSTANTIATE(Logit)                                                                               \
  template void outlier_loss_forward<Logit>(const LossRows<Logit>&, const LossSettings&, Compute<Logit>*,        \
                                            Compute<Logit>*);                                                    \
  template void outlier_loss_backward<Logit>(const LossRows<Logit>&, OutlierLoss, const Compute<Logit>*, double, \
                                             double, Logit*);                                                    \
  template void outlier_loss_totals<Logit>(const LossRows<Logit>&, bool, const Compute<Logit>*, RowTotals*, RowTotals*);
FASTOOD_INSTANTIATE(float)
FASTOOD_INSTANTIATE(double)
FASTOOD_INSTANTIATE(BFloat16)
FASTOOD_INSTANTIATE(Float16)
#undef FASTOOD_INSTANTIATE

}  // namespace fastood::outlier_loss::FASTOOD_CPU_CAPABILITY
