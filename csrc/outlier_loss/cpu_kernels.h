// Included by common/cpu_copies.h once per instruction set, inside its namespace, and so without an include guard.

template <typename Logit>
void outlier_loss_forward(const LossRows<Logit>& rows, const LossSettings& settings,
                          Compute<Logit>* per_sample,  // [num_rows] l_i of losses.h
                          Compute<Logit>* row_stats);  // [num_rows, kRowStats]

// A row's gradient is that of its l_i, times factor_id or factor_background.
template <typename Logit>
void outlier_loss_backward(const LossRows<Logit>& rows,  // targets, weight and uniform01 are in the statistics
                           OutlierLoss loss,
                           const Compute<Logit>* row_stats,  // [num_rows, kRowStats]
                           double factor_id, double factor_background,
                           Logit* grad_logits);  // [num_rows, K] contiguous

// Sums over rows of both kinds, in float64. per_sample may be null, for the divisors alone.
template <typename Logit>
void outlier_loss_totals(const LossRows<Logit>& rows, bool by_weight,
                         const Compute<Logit>* per_sample,  // [num_rows]
                         RowTotals* id, RowTotals* background);
