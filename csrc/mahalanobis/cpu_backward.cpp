// Mahalanobis logits on the CPU, backward. Compiled once per instruction set: see common/cpu_capability.h.
//
// Operations, all in T: 4 N K d for the pairs and 2 (N + K) d^2 for the solves and dL. Sums over samples are in a fixed order.
#include "cpu.h"

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

namespace fastood::mahalanobis::FASTOOD_CPU_CAPABILITY {
namespace {

#include "../common/cpu_gemm.h"

// The in-place products with a diagonal block rely on it: a block of rows is packed completely before its first store.
static_assert(kScaleBlock <= kDepth && kScaleBlock <= kColumns);

// rows [num_rows, d] <- rows L^-1, from the last block of columns to the first.
template <typename T>
void solve(const ScaleTril<T>& scale, const double* inverses, int64_t num_rows, T* rows, T* workspace) {
  const int64_t dim = scale.dim;
  for (int64_t block = num_scale_blocks(dim) - 1; block >= 0; --block) {
    const int64_t first = block * kScaleBlock;
    const int64_t size = scale_block_size(scale.dim, block);
    const MatrixView<T> own{rows + first, dim, 1};
    const double* inverse = inverses + block * kScaleBlock * kScaleBlock;
    multiply(num_rows, size, size, T(1), own, MatrixView<double>{inverse, kScaleBlock, 1}, false, rows + first, dim,
             workspace, Zeros::kAboveDiagonal);
    multiply(num_rows, first, size, T(-1), own, MatrixView<T>{scale.data + first * dim, dim, 1}, true, rows, dim,
             workspace);
  }
}

}  // namespace

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
  // The sums of a few columns at a time: a row of R is read in place.
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

#define FASTOOD_INSTANTIATE(T)                                                                         \
  template void mahalanobis_grad_features<T>(const MahalanobisBackward<T>&, int64_t, int64_t, void*);  \
  template void mahalanobis_grad_classes<T>(const MahalanobisBackward<T>&, int64_t, int64_t, void*);   \
  template void mahalanobis_solve<T>(const ScaleTril<T>&, const double*, T*, int64_t, int64_t, void*); \
  template void mahalanobis_grad_means<T>(const MahalanobisBackward<T>&, int64_t, int64_t);            \
  template void mahalanobis_grad_scale<T>(const MahalanobisBackward<T>&, int64_t, int64_t, void*);
FASTOOD_INSTANTIATE(float)
FASTOOD_INSTANTIATE(double)
#undef FASTOOD_INSTANTIATE

}  // namespace fastood::mahalanobis::FASTOOD_CPU_CAPABILITY
