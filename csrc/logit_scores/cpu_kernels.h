// Included by common/cpu_copies.h once per instruction set, inside its namespace, and so without an include guard.

template <typename Logit>
void logit_scores(const ScoreRows<Logit>& rows, const ScoreSettings& settings,
                  Compute<Logit>* scores,  // one line per score of the mask, [num_rows] of it
                  int64_t score_stride);   // from line to line
