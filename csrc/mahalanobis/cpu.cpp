// Mahalanobis logits on the CPU. Compiled once per instruction set: see common/cpu_capability.h.
//
// Operations, forward: (N + K) d^2 to whiten and 2 N K d for the pairs; backward: 4 N K d and 2 (N + K) d^2. Whitening is in
// float64, whatever T is: where a feature lies near a mean, what is left of their difference is then exact to T's last
// digit. It halves the rate of a part of forward, and leaves the rest in T.
#include "cpu.h"

#include <cmath>

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

namespace fastood::FASTOOD_CPU_CAPABILITY {
namespace {

#include "../common/cpu_gemm.h"

// The in-place products with a diagonal block rely on it: a block of rows is packed whole before its first store.
static_assert(kScaleBlock <= kDepth && kScaleBlock <= kColumns);
// The inverse of a block takes a product of a quarter of it beside what the products take.
static_assert(kGemmWorkspace<double> + kScaleBlock * kScaleBlock / 4 <= kMahalanobisWorkspace);

// Smaller than that, products are mostly packing.
constexpr int64_t kInvertedByRows = 16;

// |y|^2 + |c|^2 - 2 y.c is kept where it is at least this share of |y|^2 + |c|^2: it has lost two bits by then. Nearer
// pairs are computed from the difference of the float64 vectors.
constexpr double kNear = 0.25;

template <typename T>
int64_t block_size(const ScaleTril<T>& scale, int64_t block) {
  const int64_t rest = scale.dim - block * kScaleBlock;
  return rest < kScaleBlock ? rest : kScaleBlock;
}

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
    const int64_t size = block_size(scale, block);
    const int64_t rest = first + size;
    const MatrixView<double> own{rows + first, dim, 1};
    const double* inverse = inverses + block * kScaleBlock * kScaleBlock;
    multiply(num_rows, size, size, 1.0, own, MatrixView<double>{inverse, 1, kScaleBlock}, false, rows + first, dim,
             workspace, Zeros::kBelowDiagonal);
    multiply(num_rows, dim - rest, size, -1.0, own, MatrixView<T>{scale.data + rest * dim + first, 1, dim}, true,
             rows + rest, dim, workspace);
  }
}

// rows [num_rows, d] <- rows L^-1, from the last block of columns to the first.
template <typename T>
void solve(const ScaleTril<T>& scale, const double* inverses, int64_t num_rows, T* rows, T* workspace) {
  const int64_t dim = scale.dim;
  for (int64_t block = num_scale_blocks(dim) - 1; block >= 0; --block) {
    const int64_t first = block * kScaleBlock;
    const int64_t size = block_size(scale, block);
    const MatrixView<T> own{rows + first, dim, 1};
    const double* inverse = inverses + block * kScaleBlock * kScaleBlock;
    multiply(num_rows, size, size, T(1), own, MatrixView<double>{inverse, kScaleBlock, 1}, false, rows + first, dim,
             workspace, Zeros::kAboveDiagonal);
    multiply(num_rows, first, size, T(-1), own, MatrixView<T>{scale.data + first * dim, dim, 1}, true, rows, dim,
             workspace);
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

// The same of up to kScaleBlock rows, by halves: of [A 0; B C] it is [A^-1 0; -C^-1 B A^-1  C^-1].
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

// vectors [num_rows, d] <- L^-1 (rows - mu), and what they are in T.
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

// Whether a pair is computed from the difference. Not a number is, and comes out as one.
template <typename T>
bool is_near(T logit, double size) {
  return !(-static_cast<double>(logit) >= kNear * size);
}

// Logits of one feature from its products y.c, which they take the place of.
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

// Its nearest class, whose logit comes from the difference whatever it is.
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
    invert(scale.data + block * kScaleBlock * (scale.dim + 1), scale.dim, block_size(scale, block),
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

template <typename T>
void mahalanobis_grad_features(const MahalanobisBackward<T>& op, int64_t begin, int64_t end, void* workspace) {
  const int64_t dim = op.scale.dim;
  for (int64_t row = begin; row < end; ++row) {
    const T* const grad = op.grad + row * op.num_classes;
    T* const rest = op.rest + row * op.num_classes;
    for (int64_t i = 0; i < op.num_classes; ++i) {
      rest[i] = grad[i];
    }
    rest[op.nearest[row]] = 0;
    const T* const residual = op.residual + row * dim;
    const T* const mean = op.whitened_means + op.nearest[row] * dim;
    T* const whitened = op.whitened + row * dim;
    for (int64_t j = 0; j < dim; ++j) {
      whitened[j] = residual[j] + mean[j];
    }
  }
  multiply(end - begin, dim, op.num_classes, T(1), MatrixView<T>{op.rest + begin * op.num_classes, op.num_classes, 1},
           MatrixView<T>{op.whitened_means, dim, 1}, false, op.common + begin * dim, dim, static_cast<T*>(workspace));
  for (int64_t row = begin; row < end; ++row) {
    const T* const rest = op.rest + row * op.num_classes;
    double row_sum = 0;
#pragma omp simd reduction(+ : row_sum)
    for (int64_t i = 0; i < op.num_classes; ++i) {
      row_sum += rest[i];
    }
    const T sum = static_cast<T>(row_sum);
    const T own = op.grad[row * op.num_classes + op.nearest[row]];
    const T* const residual = op.residual + row * dim;
    const T* const whitened = op.whitened + row * dim;
    T* const common = op.common + row * dim;
    T* const solved = op.grad_features + row * dim;
    for (int64_t j = 0; j < dim; ++j) {
      common[j] = -2 * (sum * whitened[j] - common[j]);
      solved[j] = common[j] - 2 * own * residual[j];
    }
  }
}

template <typename T>
void mahalanobis_grad_classes(const MahalanobisBackward<T>& op, int64_t begin, int64_t end, void* workspace) {
  const int64_t dim = op.scale.dim;
  T* const first = op.solved_means + begin * dim;
  multiply(end - begin, dim, op.num_features, T(2), MatrixView<T>{op.rest + begin, 1, op.num_classes},
           MatrixView<T>{op.whitened, dim, 1}, false, first, dim, static_cast<T*>(workspace));
  // The sums of a few columns at a time: a row of R is read where it lies.
  constexpr int64_t kSums = 64;
  for (int64_t column = begin; column < end; column += kSums) {
    const int64_t count = end - column < kSums ? end - column : kSums;
    double sums[kSums] = {};
    for (int64_t row = 0; row < op.num_features; ++row) {
      const T* const rest = op.rest + row * op.num_classes + column;
      for (int64_t i = 0; i < count; ++i) {
        sums[i] += rest[i];
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const T sum = static_cast<T>(2 * sums[i]);
      const T* const mean = op.whitened_means + (column + i) * dim;
      T* const out = first + (column - begin + i) * dim;
      for (int64_t j = 0; j < dim; ++j) {
        out[j] -= sum * mean[j];
      }
    }
  }
  for (int64_t row = 0; row < op.num_features; ++row) {
    if (op.nearest[row] < begin || op.nearest[row] >= end) {
      continue;
    }
    const T* const common = op.common + row * dim;
    T* const out = first + (op.nearest[row] - begin) * dim;
    for (int64_t j = 0; j < dim; ++j) {
      out[j] += common[j];
    }
  }
}

template <typename T>
void mahalanobis_solve(const ScaleTril<T>& scale, const double* inverses, T* rows, int64_t begin, int64_t end,
                       void* workspace) {
  T* const first = rows + begin * scale.dim;
  if (!scale.is_diagonal) {
    solve(scale, inverses, end - begin, first, static_cast<T*>(workspace));
    return;
  }
  for (int64_t row = 0; row < end - begin; ++row) {
    for (int64_t j = 0; j < scale.dim; ++j) {
      first[row * scale.dim + j] /= scale.data[j];
    }
  }
}

template <typename T>
void mahalanobis_grad_means(const MahalanobisBackward<T>& op, int64_t begin, int64_t end) {
  const int64_t dim = op.scale.dim;
  for (int64_t i = begin * dim; i < end * dim; ++i) {
    op.grad_means[i] = op.solved_means[i];
  }
  for (int64_t row = 0; row < op.num_features; ++row) {
    if (op.nearest[row] < begin || op.nearest[row] >= end) {
      continue;
    }
    const T* const from = op.grad_features + row * dim;
    T* const out = op.grad_means + op.nearest[row] * dim;
    for (int64_t j = 0; j < dim; ++j) {
      out[j] -= from[j];
    }
  }
}

template <typename T>
void mahalanobis_grad_scale(const MahalanobisBackward<T>& op, int64_t begin, int64_t end, void* workspace) {
  const int64_t dim = op.scale.dim;
  if (op.scale.is_diagonal) {
    for (int64_t j = begin; j < end; ++j) {
      double sum = 0;
      for (int64_t row = 0; row < op.num_features; ++row) {
        sum += static_cast<double>(op.grad_features[row * dim + j]) * op.residual[row * dim + j];
      }
      for (int64_t i = 0; i < op.num_classes; ++i) {
        sum += static_cast<double>(op.solved_means[i * dim + j]) * op.whitened_means[i * dim + j];
      }
      op.grad_scale[j] = static_cast<T>(-sum);
    }
    return;
  }
  T* const out = op.grad_scale + begin * dim;
  multiply(end - begin, end, op.num_features, T(-1), MatrixView<T>{op.grad_features + begin, 1, dim},
           MatrixView<T>{op.residual, dim, 1}, false, out, dim, static_cast<T*>(workspace));
  multiply(end - begin, end, op.num_classes, T(-1), MatrixView<T>{op.solved_means + begin, 1, dim},
           MatrixView<T>{op.whitened_means, dim, 1}, true, out, dim, static_cast<T*>(workspace));
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t j = row + 1; j < dim; ++j) {
      op.grad_scale[row * dim + j] = 0;
    }
  }
}

#define FASTOOD_INSTANTIATE(T)                                                                           \
  template void mahalanobis_centre<T>(const T*, int64_t, int64_t, double*);                              \
  template void mahalanobis_invert<T>(const ScaleTril<T>&, int64_t, int64_t, double*, void*);            \
  template void mahalanobis_means<T>(const MahalanobisForward<T>&, int64_t, int64_t, void*);             \
  template void mahalanobis_features<T>(const MahalanobisForward<T>&, int64_t, int64_t, double*, void*); \
  template void mahalanobis_grad_features<T>(const MahalanobisBackward<T>&, int64_t, int64_t, void*);    \
  template void mahalanobis_grad_classes<T>(const MahalanobisBackward<T>&, int64_t, int64_t, void*);     \
  template void mahalanobis_solve<T>(const ScaleTril<T>&, const double*, T*, int64_t, int64_t, void*);   \
  template void mahalanobis_grad_means<T>(const MahalanobisBackward<T>&, int64_t, int64_t);              \
  template void mahalanobis_grad_scale<T>(const MahalanobisBackward<T>&, int64_t, int64_t, void*);
FASTOOD_INSTANTIATE(float)
FASTOOD_INSTANTIATE(double)
#undef FASTOOD_INSTANTIATE

}  // namespace fastood::FASTOOD_CPU_CAPABILITY
