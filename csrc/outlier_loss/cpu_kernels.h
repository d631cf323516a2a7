// Included by cpu.h once per instruction set, inside its namespace: hence no include guard.

template <typename Logit>
void uniformity_forward(const Logit* logits,  // [num_rows, K], rows row_stride apart
                        int64_t row_stride, int64_t num_rows, int64_t num_classes,
                        Compute<Logit>* per_sample,  // [num_rows] l of eq. 5
                        Compute<Logit>* row_stats);  // [num_rows, kRowStats] of math.h

template <typename Logit>
void uniformity_backward(const Logit* logits,  // [num_rows, K], rows row_stride apart
                         int64_t row_stride, int64_t num_rows, int64_t num_classes,
                         const Compute<Logit>* row_stats,  // [num_rows, kRowStats]
                         const Compute<Logit>* weight,     // [num_rows] or null for all ones
                         double scale,                     // gradient of the loss, over what the loss is divided by
                         Logit* grad_logits);              // [num_rows, K] contiguous: scale * w_i (f_k - 1/K)
