// Mahalanobis logits backward on CUDA: the launches of the programs in cuda_backward.h.
//
// Launches: three (pairs, solve, factor) while N + K <= 1024; beyond it one more for the class sums, and one for the shares of
// dL where its tiles alone do not fill the GPU.
// Work in T: 2 N K d multiply-adds of pairs, (N + K) d^2 / 2 of the solve, (N + K) d^2 / 2 of dL.
// Compulsory bytes, T float32: 4 (N K + 2 (N + K) d + d^2 / 2) read and 4 ((N + K) d + d^2) written; beside that P and dC,
// 4 (N + K) d, written and read from cache.
// Floor at N = 4096, K = 1000, d = 2048 on an H200 (67 TFLOP/s float32 without tensor cores): 1.1 ms.
#include "cuda.h"
#include "cuda_backward.h"
#include "cuda_class_sum.h"
#include "cuda_launch.cuh"

namespace fastood::mahalanobis {
namespace {

template <typename T>
BackwardArgs<T> args_of(const MahalanobisBackwardParams& p, Carver& workspace) {
  const MahalanobisShape& s = p.shape;
  BackwardArgs<T> args{};
  args.grad = static_cast<const T*>(p.grad);
  args.residual = static_cast<const T*>(p.residual);
  args.whitened_means = static_cast<const T*>(p.whitened_means);
  args.nearest = p.nearest;
  args.factor = static_cast<const T*>(p.factor);
  args.diagonal = s.diagonal;
  args.num_samples = s.num_samples;
  args.num_classes = s.num_classes;
  args.num_features = s.num_features;
  args.grad_features = static_cast<T*>(p.grad_features);
  args.grad_means = static_cast<T*>(p.grad_means);
  args.grad_factor = static_cast<T*>(p.grad_factor);
  args.own_class_sums = args.num_rows() <= kMaxOwnClassSums;
  args.class_shares = num_shares(s.num_samples, PairGradients<T, 64>::num_class_tiles(args));
  args.factor_shares = num_shares(args.num_rows(), s.diagonal ? ceil_div(s.num_features, kLanes)
                                                              : FactorGradient<T, 64>::num_tiles(s.num_features));
  args.sample_gradients = workspace.take<T>(s.num_samples * s.num_features);
  args.class_gradients = workspace.take<T>(args.class_shares * s.num_classes * s.num_features);
  args.factor_gradients = args.factor_shares > 1 ? workspace.take<T>(args.factor_shares * args.factor_size()) : nullptr;
  return args;
}

template <typename T, int kTile>
struct PairGradientsKernel {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kMinBlocks = sizeof(T) == 4 ? 2 : 1;
  using Shared = typename TileProduct<T, kTile>::Shared;
  static __device__ void run(Shared& shared, const BackwardArgs<T>& args) {
    CudaBlock<typename TileProduct<T, kTile>::State> block;
    PairGradients<T, kTile>::run(block, shared, blockIdx.x, args);
  }
};

template <typename T>
__device__ __forceinline__ void add_class_samples(typename ClassSum<T>::Shared& shared, int64_t block_index,
                                                  const BackwardArgs<T>& args, const T* source) {
  CudaWarp<typename ClassSum<T>::State> warp;
  ClassSum<T>::add_samples(warp, shared, threadIdx.x / kLanes, block_index, args, source);
  __syncthreads();
}

template <typename T>
struct ClassesKernel {
  static constexpr int kThreads = kClassWarps * kLanes;
  static constexpr int kMinBlocks = 2;
  using Shared = typename ClassSum<T>::Shared;
  static __device__ void run(Shared& shared, const BackwardArgs<T>& args) {
    add_class_samples<T>(shared, blockIdx.x, args, args.sample_gradients);
    ClassSum<T>::finish_classes(threadIdx.x, shared, blockIdx.x, args);
  }
};

template <Factor kFactor, typename T, int kRows>
struct SolveKernel {
  static constexpr int kThreads = kSubstitutionThreads;
  static constexpr int kMinBlocks = 2;
  using Solve = Substitution<kFactor, T, T, kRows>;
  using Shared = typename Solve::Shared;
  static __device__ void run(Shared& shared, const BackwardArgs<T>& args) {
    CudaBlock<typename Solve::State> block;
    Solve::run(block, shared, blockIdx.x, args.factor, args.num_features, GradientRows<T>(args));
  }
};

// Gradient: FactorGradient or DiagonalGradient, whose blocks come first; those of the means follow.
template <typename T, typename Gradient, typename GradientShared, typename GradientState>
struct FactorKernel {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kMinBlocks = 2;
  static_assert(kThreads == kClassWarps * kLanes);
  union Shared {
    GradientShared gradient;
    typename ClassSum<T>::Shared means;
  };
  static __device__ void run(Shared& shared, const BackwardArgs<T>& args) {
    const int64_t blocks = Gradient::num_blocks(args);
    if (blockIdx.x < blocks) {
      CudaBlock<GradientState> block;
      Gradient::run(block, shared.gradient, blockIdx.x, args);
    } else {
      add_class_samples<T>(shared.means, blockIdx.x - blocks, args, args.grad_features);
      ClassSum<T>::finish_means(threadIdx.x, shared.means, blockIdx.x - blocks, args);
    }
  }
};

template <typename T>
struct SumKernel {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  struct Shared {};
  static __device__ void run(Shared&, const BackwardArgs<T>& args) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (at < args.factor_size()) {
      sum_factor_shares(at, args);
    }
  }
};

template <typename T>
cudaError_t pairs(const BackwardArgs<T>& args, cudaStream_t stream) {
  return with_tile(PairGradients<T, 64>::num_blocks(args), [&](auto tile) {
    const int64_t blocks = PairGradients<T, tile.value>::num_blocks(args);
    return launch_program<PairGradientsKernel<T, tile.value>>(args, blocks, stream);
  });
}

template <Factor kFactor, typename T, int kRows>
cudaError_t solve_rows(const BackwardArgs<T>& args, cudaStream_t stream) {
  return launch_program<SolveKernel<kFactor, T, kRows>>(args, num_substitution_blocks(args.num_rows(), kRows), stream);
}

template <typename T>
cudaError_t solve(const BackwardArgs<T>& args, cudaStream_t stream) {
  if (args.diagonal) {
    return solve_rows<Factor::kDiagonal, T, 1>(args, stream);
  }
  return with_rows_per_warp<T>(
      args.num_rows(), [&](auto rows) { return solve_rows<Factor::kLowerFlipped, T, rows.value>(args, stream); });
}

template <typename Gradient, typename Shared, typename State, typename T>
cudaError_t factor_and_means(const BackwardArgs<T>& args, cudaStream_t stream) {
  const int64_t blocks = Gradient::num_blocks(args) + ClassSum<T>::num_blocks(args);
  return launch_program<FactorKernel<T, Gradient, Shared, State>>(args, blocks, stream);
}

template <typename T>
cudaError_t factor(const BackwardArgs<T>& args, cudaStream_t stream) {
  if (args.diagonal) {
    using Gradient = DiagonalGradient<T>;
    return factor_and_means<Gradient, typename Gradient::Shared, typename Gradient::State>(args, stream);
  }
  return with_tile(FactorGradient<T, 64>::num_blocks(args), [&](auto tile) {
    using Product = TileProduct<T, tile.value>;
    return factor_and_means<FactorGradient<T, tile.value>, typename Product::Shared, typename Product::State>(args,
                                                                                                              stream);
  });
}

template <typename T>
cudaError_t backward(const MahalanobisBackwardParams& params, cudaStream_t stream) {
  Carver workspace(params.workspace);
  const BackwardArgs<T> args = args_of<T>(params, workspace);
  cudaError_t error = pairs(args, stream);
  if (error == cudaSuccess && !args.own_class_sums) {
    error = launch_program<ClassesKernel<T>>(args, ClassSum<T>::num_blocks(args), stream);
  }
  if (error == cudaSuccess) {
    error = solve(args, stream);
  }
  if (error == cudaSuccess) {
    error = factor(args, stream);
  }
  if (error == cudaSuccess && args.factor_shares > 1) {
    error = launch_program<SumKernel<T>>(args, ceil_div(args.factor_size(), SumKernel<T>::kThreads), stream);
  }
  return error;
}

}  // namespace

int64_t mahalanobis_backward_workspace_bytes(const MahalanobisShape& shape) {
  return workspace_bytes<MahalanobisBackwardParams>(
      shape, [&]<typename T>(const auto& params, Carver& workspace) { args_of<T>(params, workspace); });
}

cudaError_t launch_mahalanobis_backward(const MahalanobisBackwardParams& params, cudaStream_t stream) {
  return with_element_type(params.shape, [&]<typename T>() { return backward<T>(params, stream); });
}

}  // namespace fastood::mahalanobis
