// Included by common/cpu_copies.h once per instruction set, inside its namespace, and so without an include guard.
// Each works on a range of rows, classes or blocks; the ranges of one function may run in parallel, and the results
// do not depend on how they are split.

template <typename T>
void mahalanobis_centre(const T* means, int64_t num_classes, int64_t dim, double* centre);

// Inverses of the diagonal blocks [begin, end) of L.
template <typename T>
void mahalanobis_invert(const ScaleTril<T>& scale, int64_t begin, int64_t end, double* inverses, void* workspace);

// mean_vectors, mean_norms and whitened_means of classes [begin, end).
template <typename T>
void mahalanobis_means(const MahalanobisForward<T>& op, int64_t begin, int64_t end, void* workspace);

// logits, nearest and residual of features [begin, end). The scratch is for feature_block() of them, or for all if fewer.
template <typename T>
void mahalanobis_features(const MahalanobisForward<T>& op, int64_t begin, int64_t end, double* scratch,
                          void* workspace);

// rest, whitened, common and dU of features [begin, end).
template <typename T>
void mahalanobis_grad_features(const MahalanobisBackward<T>& op, int64_t begin, int64_t end, void* workspace);

// dC~ of classes [begin, end).
template <typename T>
void mahalanobis_grad_classes(const MahalanobisBackward<T>& op, int64_t begin, int64_t end, void* workspace);

// dZ in the place of dU, or dM~ in that of dC~: rows [begin, end).
template <typename T>
void mahalanobis_solve(const ScaleTril<T>& scale, const double* inverses, T* rows, int64_t begin, int64_t end,
                       void* workspace);

// grad_means of classes [begin, end).
template <typename T>
void mahalanobis_grad_means(const MahalanobisBackward<T>& op, int64_t begin, int64_t end);

// Rows [begin, end) of grad_scale.
template <typename T>
void mahalanobis_grad_scale(const MahalanobisBackward<T>& op, int64_t begin, int64_t end, void* workspace);
