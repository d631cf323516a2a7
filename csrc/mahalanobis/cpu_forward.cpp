// Mahalanobis logits on the CPU, forward. Compiled once per instruction set: see common/cpu_capability.h.
//
// Operations: (N + K) d^2 to whiten and 2 N K d for the pairs. Whitening is in float64 for any T: the difference of a feature
// and a mean near to it is then exact to the last digit of T. This halves the rate of a part of forward; all else is in T.
#include <cmath>

#include "cpu.h"

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

namespace fastood::mahalanobis::FASTOOD_CPU_CAPABILITY {
namespace {

#include "../common/cpu_gemm.h"

// The in-place products with a diagonal block rely on it: a block of rows is packed completely before its first store.
static_assert(kScaleBlock <= kDepth && kScaleBlock <= kColumns);
// Inverting a block needs a product of a quarter of it in addition to the workspace of the products.
static_assert(kGemmWorkspace<double> + kScaleBlock * kScaleBlock / 4 <= kMahalanobisWorkspace);

// Below this size products would mostly pack.
constexpr int64_t kInvertedByRows = 16;

// |y|^2 + |c|^2 - 2 y.c is kept if it is at least this fraction of |y|^2 + |c|^2, for which it loses at most two bits.
// Nearer pairs are computed from the difference of the float64 vectors.
constexpr double kNear = 0.25;

double squared_norm(const double* vector, int64_t dim) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < dim; ++j) {
    sum += vector[j] * vector[j];
  }
  return sum;
}

double squared_distance(const double* a, const double* b, int64_t dim) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < dim; ++j) {
    const double difference = a[j] - b[j];
    sum += difference * difference;
  }
  return sum;
}

// rows [num_rows, d] <- rows L^-T, from the first block of columns to the last.
template <typename T>
void solve_transposed(const ScaleTril<T>& scale, const double* inverses, int64_t num_rows, double* rows,
                      double* workspace) {
  const int64_t dim = scale.dim;
  for (int64_t block = 0; block < num_scale_blocks(dim); ++block) {
    const int64_t first = block * kScaleBlock;
    const int64_t size = scale_block_size(scale.dim, block);
    const int64_t rest = first + size;
    const MatrixView<double> own{rows + first, dim, 1};
    const double* inverse = inverses + block * kScaleBlock * kScaleBlock;
    multiply(num_rows, size, size, 1.0, own, MatrixView<double>{inverse, 1, kScaleBlock}, false, rows + first, dim,
             workspace, Zeros::kBelowDiagonal);
    multiply(num_rows, dim - rest, size, -1.0, own, MatrixView<T>{scale.data + rest * dim + first, 1, dim}, true,
             rows + rest, dim, workspace);
  }
}

// inverse <- L^-1 of a few rows, zeros above the diagonal.
template <typename T>
void invert_rows(const T* scale, int64_t dim, int64_t size, double* inverse) {
  for (int64_t i = 0; i < size; ++i) {
    double* const row = inverse + i * kScaleBlock;
    const T* const from = scale + i * dim;
    for (int64_t j = 0; j < size; ++j) {
      row[j] = 0;
    }
    for (int64_t k = 0; k < i; ++k) {
      for (int64_t j = 0; j <= k; ++j) {
        row[j] -= from[k] * inverse[k * kScaleBlock + j];
      }
    }
    const double reciprocal = 1 / static_cast<double>(from[i]);
    for (int64_t j = 0; j < i; ++j) {
      row[j] *= reciprocal;
    }
    row[i] = reciprocal;
  }
}

// inverse <- L^-1 of up to kScaleBlock rows, by halves: of [A 0; B C] it is [A^-1 0; -C^-1 B A^-1  C^-1].
template <typename T>
void invert(const T* scale, int64_t dim, int64_t size, double* inverse, double* workspace) {
  if (size <= kInvertedByRows) {
    invert_rows(scale, dim, size, inverse);
    return;
  }
  const int64_t half = size / 2;
  const int64_t rest = size - half;
  double* const below = inverse + half * kScaleBlock;
  double* const product = workspace + kGemmWorkspace<double>;
  invert(scale, dim, half, inverse, workspace);
  invert(scale + half * (dim + 1), dim, rest, below + half, workspace);
  multiply(rest, half, half, -1.0, MatrixView<T>{scale + half * dim, dim, 1},
           MatrixView<double>{inverse, kScaleBlock, 1}, false, product, half, workspace);
  multiply(rest, half, rest, 1.0, MatrixView<double>{below + half, kScaleBlock, 1},
           MatrixView<double>{product, half, 1}, false, below, kScaleBlock, workspace);
  for (int64_t i = 0; i < half; ++i) {
    for (int64_t j = half; j < size; ++j) {
      inverse[i * kScaleBlock + j] = 0;
    }
  }
}

// vectors [num_rows, d] <- L^-1 (rows - mu), and their roundings to T.
template <typename T>
void whiten(const MahalanobisForward<T>& op, int64_t num_rows, const T* rows, double* vectors, T* rounded,
            double* workspace) {
  const int64_t dim = op.scale.dim;
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t j = 0; j < dim; ++j) {
      vectors[row * dim + j] = static_cast<double>(rows[row * dim + j]) - op.centre[j];
    }
    for (int64_t j = 0; j < dim && op.scale.is_diagonal; ++j) {
      vectors[row * dim + j] /= static_cast<double>(op.scale.data[j]);
    }
  }
  if (!op.scale.is_diagonal) {
    solve_transposed(op.scale, op.inverses, num_rows, vectors, workspace);
  }
  for (int64_t i = 0; i < num_rows * dim; ++i) {
    rounded[i] = static_cast<T>(vectors[i]);
  }
}

// Whether a pair is computed from the difference. True for NaN, which propagates.
template <typename T>
bool is_near(T logit, double size) {
  return !(-static_cast<double>(logit) >= kNear * size);
}

// Logits of one feature in the place of its products y.c.
template <typename T>
void distances(const MahalanobisForward<T>& op, const double* y, T* logits) {
  const int64_t dim = op.scale.dim;
  const double norm = squared_norm(y, dim);
  constexpr int64_t kPairs = 16;
  for (int64_t first = 0; first < op.num_classes; first += kPairs) {
    const int64_t last = first + kPairs < op.num_classes ? first + kPairs : op.num_classes;
    int num_near = 0;
#pragma omp simd reduction(+ : num_near)
    for (int64_t i = first; i < last; ++i) {
      const double size = norm + op.mean_norms[i];
      logits[i] = static_cast<T>(2 * static_cast<double>(logits[i]) - size);
      num_near += is_near(logits[i], size);
    }
    for (int64_t i = first; i < last && num_near > 0; ++i) {
      if (is_near(logits[i], norm + op.mean_norms[i])) {
        logits[i] = static_cast<T>(0 - squared_distance(y, op.mean_vectors + i * dim, dim));
        --num_near;
      }
    }
  }
}

// The largest logit, the first of equals; 0 if all are NaN.
template <typename T>
int64_t largest(const T* logits, int64_t count) {
  T value = -static_cast<T>(INFINITY);
#pragma omp simd reduction(max : value)
  for (int64_t i = 0; i < count; ++i) {
    value = value < logits[i] ? logits[i] : value;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (logits[i] == value) {
      return i;
    }
  }
  return 0;
}

// The nearest class of a feature; its logit is always computed from the difference.
template <typename T>
int64_t nearest_class(const MahalanobisForward<T>& op, const double* y, T* logits) {
  const int64_t dim = op.scale.dim;
  int64_t nearest = largest(logits, op.num_classes);
  for (int64_t exact = -1; exact != nearest;) {
    exact = nearest;
    logits[exact] = static_cast<T>(0 - squared_distance(y, op.mean_vectors + exact * dim, dim));
    nearest = largest(logits, op.num_classes);
  }
  return nearest;
}

}  // namespace

template <typename T>
void mahalanobis_centre(const T* means, int64_t num_classes, int64_t dim, double* centre) {
  for (int64_t j = 0; j < dim; ++j) {
    centre[j] = 0;
  }
  for (int64_t i = 0; i < num_classes; ++i) {
    for (int64_t j = 0; j < dim; ++j) {
      centre[j] += means[i * dim + j];
    }
  }
  for (int64_t j = 0; j < dim; ++j) {
    centre[j] /= static_cast<double>(num_classes);
  }
}

template <typename T>
void mahalanobis_invert(const ScaleTril<T>& scale, int64_t begin, int64_t end, double* inverses, void* workspace) {
  for (int64_t block = begin; block < end; ++block) {
    invert(scale.data + block * kScaleBlock * (scale.dim + 1), scale.dim, scale_block_size(scale.dim, block),
           inverses + block * kScaleBlock * kScaleBlock, static_cast<double*>(workspace));
  }
}

template <typename T>
void mahalanobis_means(const MahalanobisForward<T>& op, int64_t begin, int64_t end, void* workspace) {
  const int64_t dim = op.scale.dim;
  whiten(op, end - begin, op.means + begin * dim, op.mean_vectors + begin * dim, op.whitened_means + begin * dim,
         static_cast<double*>(workspace));
  for (int64_t i = begin; i < end; ++i) {
    op.mean_norms[i] = squared_norm(op.mean_vectors + i * dim, dim);
  }
}

template <typename T>
void mahalanobis_features(const MahalanobisForward<T>& op, int64_t begin, int64_t end, double* scratch,
                          void* workspace) {
  const int64_t dim = op.scale.dim;
  for (int64_t first = begin; first < end; first += feature_block(dim)) {
    const int64_t count = end - first < feature_block(dim) ? end - first : feature_block(dim);
    T* const rounded = reinterpret_cast<T*>(scratch + count * dim);
    whiten(op, count, op.features + first * dim, scratch, rounded, static_cast<double*>(workspace));
    multiply(count, op.num_classes, dim, T(1), MatrixView<T>{rounded, dim, 1}, MatrixView<T>{op.whitened_means, 1, dim},
             false, op.logits + first * op.num_classes, op.num_classes, static_cast<T*>(workspace));
    for (int64_t row = 0; row < count; ++row) {
      const double* const y = scratch + row * dim;
      T* const logits = op.logits + (first + row) * op.num_classes;
      distances(op, y, logits);
      const int64_t nearest = nearest_class(op, y, logits);
      op.nearest[first + row] = nearest;
      const double* const c = op.mean_vectors + nearest * dim;
      T* const residual = op.residual + (first + row) * dim;
      for (int64_t j = 0; j < dim; ++j) {
        residual[j] = static_cast<T>(y[j] - c[j]);
      }
    }
  }
}

#define FASTOOD_INSTANTIATE(T)                                                                \
  template void mahalanobis_centre<T>(const T*, int64_t, int64_t, double*);                   \
  template void mahalanobis_invert<T>(const ScaleTril<T>&, int64_t, int64_t, double*, void*); \
  template void mahalanobis_means<T>(const MahalanobisForward<T>&, int64_t, int64_t, void*);  \
  template void mahalanobis_features<T>(const MahalanobisForward<T>&, int64_t, int64_t, double*, void*);
FASTOOD_INSTANTIATE(float)
FASTOOD_INSTANTIATE(double)
#undef FASTOOD_INSTANTIATE

}  // namespace fastood::mahalanobis::FASTOOD_CPU_CAPABILITY
