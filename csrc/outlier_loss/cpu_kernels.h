// Included by cpu.h once per instruction set, inside its namespace: hence no include guard.

template <typename Logit>
void uniformity_forward(const Logit* logits,  // [num_rows, K], rows row_stride apart
                        int64_t row_stride, int64_t num_rows, int64_t num_classes,
                        Compute<Logit>* per_sample,  // [num_rows] l of eq. 5
                        Compute<Logit>* row_stats);  // [num_rows, kRowStats] of math.h

// Completes the row statistics with the factor of the gradient, once the divisor of the loss is known.
template <typename T>
void uniformity_scale(const T* weight,  // [num_rows] or null for all ones
                      int64_t num_rows, int64_t num_classes, double divisor,
                      T* row_stats);  // [num_rows, kRowStats]

template <typename Logit>
void uniformity_backward(const Logit* logits,  // [num_rows, K], rows row_stride apart
                         int64_t row_stride, int64_t num_rows, int64_t num_classes,
                         const Compute<Logit>* row_stats,  // [num_rows, kRowStats]
                         double grad_loss,                 // upstream gradient
                         Logit* grad_logits);              // [num_rows, K] contiguous
