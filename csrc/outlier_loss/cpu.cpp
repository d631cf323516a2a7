// Outlier losses on the CPU. Compiled once per instruction set: see common/cpu_capability.h.
//
// Bytes: forward reads N K logits, backward reads them and writes the gradient. Operations: one exponential per logit and
// pass, about 25 vector instructions; with AVX-512 both passes are bound by memory from a few MiB on.
// Two layouts of the same maths: along a row for many classes (cpu_row.h), across rows for few (cpu_tile.h). The second
// takes in-distribution and background rows apart, in whatever order they come.
#include "cpu.h"

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

#include "cpu_row.h"
#include "cpu_tile.h"

namespace fastood::FASTOOD_CPU_CAPABILITY {
namespace {

template <typename Logit, typename T = Compute<Logit>>
void finish(const LossRows<Logit>& rows, const LossSettings& settings, int64_t i, const RowValue<T>& value,
            T* per_sample, T* row_stats) {
  const Logit* logits = rows.row(i);
  per_sample[i] = finish_row(
      settings, value, rows.num_classes, rows.target(i), rows.weight == nullptr ? T(1) : rows.weight[i],
      rows.uniform01 == nullptr ? T(0) : rows.uniform01[i], [logits](int64_t k) { return to_compute(logits[k]); },
      row_stats + kRowStats * i);
}

template <typename Logit, typename T = Compute<Logit>>
void forward_across_rows(const LossRows<Logit>& rows, const LossSettings& settings, T* per_sample, T* row_stats) {
  const RowTerm terms[2] = {row_term(settings.loss, false), row_term(settings.loss, true)};
  TileRows tiles[2];
  const auto flush = [&](bool background) {
    TileRows& which = tiles[background];
    RowValue<T> values[kLanes];
    which.fill();
    tile_values(rows, which, terms[background], needs_largest_class(settings.loss) && background, values);
    for (int64_t lane = 0; lane < which.count; ++lane) {
      finish(rows, settings, which.row[lane], values[lane], per_sample, row_stats);
    }
    which.count = 0;
  };
  for (int64_t i = 0; i < rows.num_rows; ++i) {
    const bool background = rows.target(i) < 0;
    tiles[background].add(i);
    if (tiles[background].count == kLanes) {
      flush(background);
    }
  }
  for (const bool background : {false, true}) {
    if (tiles[background].count > 0) {
      flush(background);
    }
  }
}

}  // namespace

template <typename Logit>
void outlier_loss_forward(const LossRows<Logit>& rows, const LossSettings& settings, Compute<Logit>* per_sample,
                          Compute<Logit>* row_stats) {
  if (rows.num_classes <= kMaxClassesAcrossRows) {
    return forward_across_rows(rows, settings, per_sample, row_stats);
  }
  for (int64_t i = 0; i < rows.num_rows; ++i) {
    const bool background = rows.target(i) < 0;
    const auto value = row_value(rows.row(i), rows.num_classes, row_term(settings.loss, background),
                                 needs_largest_class(settings.loss) && background);
    finish(rows, settings, i, value, per_sample, row_stats);
  }
}

template <typename Logit>
void outlier_loss_backward(const LossRows<Logit>& rows, OutlierLoss loss, const Compute<Logit>* row_stats,
                           double factor_id, double factor_background, Logit* grad_logits) {
  if (rows.num_classes <= kMaxClassesAcrossRows && loss != OutlierLoss::kMagnitude) {
    for (int64_t i = 0; i < rows.num_rows; i += kLanes) {
      const int64_t count = std::min(kLanes, rows.num_rows - i);
      const auto tile = loss == OutlierLoss::kEntropy ? backward_tile<true, Logit> : backward_tile<false, Logit>;
      tile(rows, i, count, loss, row_stats + kRowStats * i, factor_id, factor_background,
           grad_logits + i * rows.num_classes);
    }
    return;
  }
  for (int64_t i = 0; i < rows.num_rows; ++i) {
    const RowGradient<Compute<Logit>> gradient(loss, row_stats + kRowStats * i, factor_id, factor_background);
    backward_row(rows.row(i), rows.num_classes, gradient, grad_logits + i * rows.num_classes);
  }
}

#define FASTOOD_INSTANTIATE(Logit)                                                                               \
  template void outlier_loss_forward<Logit>(const LossRows<Logit>&, const LossSettings&, Compute<Logit>*,        \
                                            Compute<Logit>*);                                                    \
  template void outlier_loss_backward<Logit>(const LossRows<Logit>&, OutlierLoss, const Compute<Logit>*, double, \
                                             double, Logit*);
FASTOOD_INSTANTIATE(float)
FASTOOD_INSTANTIATE(double)
FASTOOD_INSTANTIATE(BFloat16)
FASTOOD_INSTANTIATE(Float16)
#undef FASTOOD_INSTANTIATE

}  // namespace fastood::FASTOOD_CPU_CAPABILITY
