// Mahalanobis logits forward on CUDA: the launches of the programs in cuda_forward.h.
//
// Launches: three (whiten, pairs, finish) while K d <= 32768, four beyond (the centre first); without samples only those that
// whiten the means. L is read by substitution alone, so that no copy of it is made.
// Work: (N + K) d^2 / 2 float64 multiply-adds, N K d in T. Compulsory bytes, T float32: 4 ((N + K) d + d^2 / 2 + N K) in and
// out, 4 (N + K) d of results for backward; beside that the workspace, 8 (N + K) d written and read from cache.
// Floor at N = 4096, K = 1000, d = 2048 on an H200 (34 TFLOP/s float64, 67 float32, both without tensor cores): 0.63 ms of
// float64 and 0.25 ms of float32. At N = 384, K = 100, d = 128 it is the launches.
// float64, because the losses depend on the logits near zero: on data-centre GPUs it runs at half the float32 rate, and
// saves a second whitening, of the differences in float32. Where the rate is 1/64 the whitening takes the time: 6 us at
// the small shape above on 640 G multiply-adds/s, but 17 ms at the large one. The programs take any type that has + - *
// and / in its place.
#include "cuda.h"
#include "cuda_forward.h"
#include "cuda_launch.cuh"

namespace fastood::mahalanobis {
namespace {

template <typename T>
ForwardArgs<T> args_of(const MahalanobisForwardParams& p, Carver& workspace) {
  const MahalanobisShape& s = p.shape;
  ForwardArgs<T> args{};
  args.features = static_cast<const T*>(p.features);
  args.means = static_cast<const T*>(p.means);
  args.factor = static_cast<const T*>(p.factor);
  args.num_samples = s.num_samples;
  args.num_classes = s.num_classes;
  args.num_features = s.num_features;
  args.logits = static_cast<T*>(p.logits);
  args.residual = static_cast<T*>(p.residual);
  args.whitened_means = static_cast<T*>(p.whitened_means);
  args.nearest = p.nearest;
  args.whitened = workspace.take<double>(args.num_rows() * s.num_features);
  args.norms = workspace.take<T>(args.num_rows());
  args.centre = s.num_classes * s.num_features > kMaxOwnCentre ? workspace.take<double>(s.num_features) : nullptr;
  return args;
}

template <typename T>
struct CentreKernel {
  static constexpr int kThreads = kCentreGroups * kLanes;
  static constexpr int kMinBlocks = 2;
  using Shared = typename Centre<T>::Shared;
  static __device__ void run(Shared& shared, const ForwardArgs<T>& args) {
    CudaBlock<typename Centre<T>::State> block;
    Centre<T>::run(block, shared, blockIdx.x, args);
  }
};

template <Factor kFactor, typename T, int kRows>
struct WhitenKernel {
  static constexpr int kThreads = kSubstitutionThreads;
  static constexpr int kMinBlocks = 2;
  using Whiten = Substitution<kFactor, T, double, kRows>;
  using Shared = typename Whiten::Shared;
  static __device__ void run(Shared& shared, const ForwardArgs<T>& args) {
    CudaBlock<typename Whiten::State> block;
    Whiten::run(block, shared, blockIdx.x, args.factor, args.num_features, CentredRows<T>(args));
  }
};

template <typename T, int kTile>
struct PairsKernel {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kMinBlocks = 2;
  using Shared = typename TileProduct<T, kTile>::Shared;
  static __device__ void run(Shared& shared, const ForwardArgs<T>& args) {
    CudaBlock<typename TileProduct<T, kTile>::State> block;
    Pairs<T, kTile>::run(block, shared, blockIdx.x, args);
  }
};

template <typename T>
struct FinishKernel {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 2;
  static constexpr int kWarps = kThreads / kLanes;
  struct Shared {};
  static __device__ void run(Shared&, const ForwardArgs<T>& args) {
    CudaWarp<typename Finish<T>::State> warp;
    const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
    if (n < args.num_samples) {  // a whole warp alike
      Finish<T>::run(warp, n, args);
    }
  }
};

template <Factor kFactor, typename T, int kRows>
cudaError_t whiten_rows(const ForwardArgs<T>& args, cudaStream_t stream) {
  return launch_program<WhitenKernel<kFactor, T, kRows>>(args, num_substitution_blocks(args.num_rows(), kRows), stream);
}

template <typename T>
cudaError_t whiten(const ForwardArgs<T>& args, bool diagonal, cudaStream_t stream) {
  if (diagonal) {
    return whiten_rows<Factor::kDiagonal, T, 1>(args, stream);
  }
  return with_rows_per_warp<T>(args.num_rows(),
                               [&](auto rows) { return whiten_rows<Factor::kLower, T, rows.value>(args, stream); });
}

template <typename T>
cudaError_t pairs(const ForwardArgs<T>& args, cudaStream_t stream) {
  return with_tile(Pairs<T, 64>::num_blocks(args), [&](auto tile) {
    return launch_program<PairsKernel<T, tile.value>>(args, Pairs<T, tile.value>::num_blocks(args), stream);
  });
}

template <typename T>
cudaError_t forward(const MahalanobisForwardParams& params, cudaStream_t stream) {
  Carver workspace(params.workspace);
  const ForwardArgs<T> args = args_of<T>(params, workspace);
  cudaError_t error = cudaSuccess;
  if (args.centre != nullptr) {
    error = launch_program<CentreKernel<T>>(args, ceil_div(args.num_features, kLanes), stream);
  }
  if (error == cudaSuccess) {
    error = whiten(args, params.shape.diagonal, stream);
  }
  if (error == cudaSuccess) {
    error = pairs(args, stream);
  }
  if (error == cudaSuccess) {
    error = launch_program<FinishKernel<T>>(args, ceil_div(args.num_samples, FinishKernel<T>::kWarps), stream);
  }
  return error;
}

}  // namespace

int64_t mahalanobis_forward_workspace_bytes(const MahalanobisShape& shape) {
  return workspace_bytes<MahalanobisForwardParams>(
      shape, [&]<typename T>(const auto& params, Carver& workspace) { args_of<T>(params, workspace); });
}

cudaError_t launch_mahalanobis_forward(const MahalanobisForwardParams& params, cudaStream_t stream) {
  return with_element_type(params.shape, [&]<typename T>() { return forward<T>(params, stream); });
}

}  // namespace fastood::mahalanobis
