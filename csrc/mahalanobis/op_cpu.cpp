// torch.ops.fastood.mahalanobis_logits on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>

#include "../common/huge_pages.h"
#include "cpu.h"
#include "op.h"

namespace fastood::mahalanobis {
namespace {

// Below this many multiply-adds a second thread costs more than it saves.
constexpr int64_t kGrain = int64_t{1} << 20;
// A thread packs the whole second factor for its rows: with fewer of them that is most of the work.
constexpr int64_t kMinRows = 32;

template <typename T>
struct Buffer {
  std::unique_ptr<T[]> data;

  explicit Buffer(int64_t count) : data(new T[std::max<int64_t>(count, 1)]) {
    advise_huge_pages(data.get(), count * sizeof(T));
  }
  operator T*() const { return data.get(); }
};

// Calls body(begin, end, workspace) on ranges of rows that cost `work` multiply-adds each.
template <typename Body>
void parallel(int64_t rows, int64_t work, const Body& body) {
  const int64_t grain = std::max(kMinRows, kGrain / std::max<int64_t>(work, 1));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<double[]> workspace(new double[kMahalanobisWorkspace]);
    body(begin, end, workspace.get());
  });
}

template <typename T>
ScaleTril<T> scale_of(const MahalanobisInput& in) {
  return {static_cast<const T*>(in.scale_tril.const_data_ptr()), in.dim, in.is_diagonal};
}

template <typename T>
void check_diagonal(const ScaleTril<T>& scale) {
  for (int64_t j = 0; j < scale.dim; ++j) {
    const T value = scale.data[scale.is_diagonal ? j : j * (scale.dim + 1)];
    STD_TORCH_CHECK(value > 0 && std::isfinite(value), "scale_tril must have a finite diagonal above 0, got ", value,
                    " at position ", j);
  }
}

// The inverses of the diagonal blocks of L; none for a diagonal L.
template <typename T>
Buffer<double> inverses_of(const ScaleTril<T>& scale) {
  const int64_t blocks = scale.is_diagonal ? 0 : num_scale_blocks(scale.dim);
  Buffer<double> inverses(blocks * kScaleBlock * kScaleBlock);
  torch::stable::parallel_for(0, blocks, 2, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<double[]> workspace(new double[kMahalanobisWorkspace]);
    FASTOOD_CPU_DISPATCH(mahalanobis_invert<T>)(scale, begin, end, inverses, workspace.get());
  });
  return inverses;
}

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <typename T>
ForwardResult forward(const MahalanobisForwardInput& in) {
  const int64_t N = in.num_features, K = in.num_classes, d = in.dim;
  const ScaleTril<T> scale = scale_of<T>(in);
  check_diagonal(scale);
  ForwardResult result{in.empty(N, K), in.empty(N, d), in.empty(K, d),
                       allocate(in.features, std::array<int64_t, 1>{N}, ScalarType::Long)};
  const Buffer<double> inverses = inverses_of(scale);
  const Buffer<double> centre(d), mean_vectors(K * d), mean_norms(K);
  const auto* means = static_cast<const T*>(in.means.const_data_ptr());
  auto* logits = static_cast<T*>(std::get<0>(result).mutable_data_ptr());
  advise_huge_pages(logits, N * K * sizeof(T));
  FASTOOD_CPU_DISPATCH(mahalanobis_centre<T>)(means, K, d, centre);
  const MahalanobisForward<T> op{scale,
                                 static_cast<const T*>(in.features.const_data_ptr()),
                                 means,
                                 N,
                                 K,
                                 centre,
                                 inverses,
                                 mean_vectors,
                                 mean_norms,
                                 static_cast<T*>(std::get<2>(result).mutable_data_ptr()),
                                 logits,
                                 static_cast<int64_t*>(std::get<3>(result).mutable_data_ptr()),
                                 static_cast<T*>(std::get<1>(result).mutable_data_ptr())};
  const int64_t whitening = in.is_diagonal ? d : d * d;
  parallel(K, whitening, [&](int64_t begin, int64_t end, void* workspace) {
    FASTOOD_CPU_DISPATCH(mahalanobis_means<T>)(op, begin, end, workspace);
  });
  parallel(N, whitening + K * d, [&](int64_t begin, int64_t end, void* workspace) {
    const Buffer<double> scratch(std::min(end - begin, feature_block(d)) * feature_scratch(d));
    FASTOOD_CPU_DISPATCH(mahalanobis_features<T>)(op, begin, end, scratch, workspace);
  });
  return result;
}

using BackwardResult = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
BackwardResult backward(const MahalanobisBackwardInput& in) {
  const int64_t N = in.num_features, K = in.num_classes, d = in.dim;
  const ScaleTril<T> scale = scale_of<T>(in);
  const Buffer<double> inverses = inverses_of(scale);
  BackwardResult result{in.empty_like_features(), in.empty_like_means(), in.empty_like_scale()};
  const Buffer<T> rest(N * K), whitened(N * d), common(N * d), solved_means(K * d);
  const MahalanobisBackward<T> op{scale,
                                  static_cast<const T*>(in.grad.const_data_ptr()),
                                  static_cast<const T*>(in.residual.const_data_ptr()),
                                  static_cast<const T*>(in.whitened_means.const_data_ptr()),
                                  static_cast<const int64_t*>(in.nearest.const_data_ptr()),
                                  N,
                                  K,
                                  inverses,
                                  rest,
                                  whitened,
                                  common,
                                  solved_means,
                                  static_cast<T*>(std::get<0>(result).mutable_data_ptr()),
                                  static_cast<T*>(std::get<1>(result).mutable_data_ptr()),
                                  static_cast<T*>(std::get<2>(result).mutable_data_ptr())};
  for (int64_t row = 0; row < N; ++row) {
    STD_TORCH_CHECK(op.nearest[row] >= 0 && op.nearest[row] < K, "nearest must be in 0 ... ", K - 1, ", got ",
                    op.nearest[row]);
  }
  parallel(N, K * d, [&](int64_t begin, int64_t end, void* workspace) {
    FASTOOD_CPU_DISPATCH(mahalanobis_grad_features<T>)(op, begin, end, workspace);
  });
  parallel(K, N * d, [&](int64_t begin, int64_t end, void* workspace) {
    FASTOOD_CPU_DISPATCH(mahalanobis_grad_classes<T>)(op, begin, end, workspace);
  });
  const auto solve = [&](T* rows, int64_t num_rows) {
    parallel(num_rows, in.is_diagonal ? d : d * d, [&](int64_t begin, int64_t end, void* workspace) {
      FASTOOD_CPU_DISPATCH(mahalanobis_solve<T>)(scale, inverses, rows, begin, end, workspace);
    });
  };
  solve(op.grad_features, N);
  solve(op.solved_means, K);
  parallel(K, N,
           [&](int64_t begin, int64_t end, void*) { FASTOOD_CPU_DISPATCH(mahalanobis_grad_means<T>)(op, begin, end); });
  if (in.is_diagonal) {
    FASTOOD_CPU_DISPATCH(mahalanobis_grad_scale<T>)(op, 0, d, nullptr);
    return result;
  }
  // A block of rows of the triangle and the one as far from its other end: pairs of equal work.
  const int64_t blocks = num_scale_blocks(d);
  const int64_t work = kScaleBlock * d * (N + K);
  torch::stable::parallel_for(0, (blocks + 1) / 2, std::max<int64_t>(1, kGrain / std::max<int64_t>(work, 1)),
                              [&](int64_t begin, int64_t end) {
                                const std::unique_ptr<double[]> workspace(new double[kMahalanobisWorkspace]);
                                const auto take = [&](int64_t block) {
                                  FASTOOD_CPU_DISPATCH(mahalanobis_grad_scale<T>)
                                  (op, block * kScaleBlock, std::min(d, (block + 1) * kScaleBlock), workspace.get());
                                };
                                for (int64_t pair = begin; pair < end; ++pair) {
                                  take(pair);
                                  if (pair != blocks - 1 - pair) {
                                    take(blocks - 1 - pair);
                                  }
                                }
                              });
  return result;
}

ForwardResult mahalanobis_logits_cpu(const Tensor& features, const Tensor& means, const Tensor& scale_tril) {
  const MahalanobisForwardInput in(features, means, scale_tril);
  return in.dtype == ScalarType::Double ? forward<double>(in) : forward<float>(in);
}

BackwardResult mahalanobis_logits_backward_cpu(const Tensor& grad, const Tensor& residual, const Tensor& whitened_means,
                                               const Tensor& nearest, const Tensor& scale_tril) {
  const MahalanobisBackwardInput in(grad, residual, whitened_means, nearest, scale_tril);
  return in.dtype == ScalarType::Double ? backward<double>(in) : backward<float>(in);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("mahalanobis_logits", TORCH_BOX(&mahalanobis_logits_cpu));
  m.impl("_mahalanobis_logits_backward", TORCH_BOX(&mahalanobis_logits_backward_cpu));
}

}  // namespace fastood::mahalanobis
