// The nearest key of a class on CUDA: one launch to compare, one to merge the results of the shares of the keys.
//
// Operations: two per pair and feature, with M N/K pairs for K classes of equal size; the last tile of eight queries of
// a class may be partial. Bytes: the keys of the queried classes, once per eight queries, from memory or the level-2
// cache; partial results are 16 bytes per query and part of the keys. The order of sums is fixed and there are no
// atomics: results have the same bits for any number of parts.
#include "../common/grid_limit.h"
#include "cuda.h"
#include "cuda_search.h"

namespace fastood::class_l1_nearest {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kLanes;
// Warps that keep the largest GPU busy, over which the keys are distributed.
constexpr int64_t kWantedWarps = 1 << 13;
// Fewest keys of a share, if all were of one class.
constexpr int64_t kMinShare = 64;
constexpr int64_t kMaxBlocks = 1 << 16;

int64_t num_shares(int64_t num_queries, int64_t num_keys) {
  const int64_t tiles = ceil_div(num_queries, kSearchQueries);
  const int64_t wanted = tiles == 0 ? 1 : ceil_div(kWantedWarps, tiles);
  const int64_t possible = ceil_div(num_keys, kMinShare);
  const int64_t shares = wanted < possible ? wanted : possible;
  return shares < 1 ? 1 : shares;
}

template <typename Key, typename T>
__global__ void __launch_bounds__(kThreads) search_kernel(const __grid_constant__ SearchArgs<Key, T> p) {
  using Search = NearestSearch<Key, T>;
  CudaWarp<typename Search::State> warp;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.num_queries;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    Search::clear(i, p);
  }
  const int64_t num_warps = p.num_tiles() * p.num_shares;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes; i < num_warps;
       i += static_cast<int64_t>(gridDim.x) * kWarps) {
    // Neighbouring warps read the same keys for different queries.
    Search::run(warp, i % p.num_tiles(), i / p.num_tiles(), p);
  }
}

template <typename Key, typename T>
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ SearchArgs<Key, T> p) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.num_queries;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    NearestSearch<Key, T>::finish(i, p);
  }
}

template <typename Key, typename T>
cudaError_t launch(const ClassL1NearestParams& params, cudaStream_t stream) {
  SearchArgs<Key, T> p{};
  p.queries = static_cast<const T*>(params.queries);
  p.query_classes = params.query_classes;
  p.query_order = params.query_order;
  p.keys = static_cast<const Key*>(params.keys);
  p.key_classes = params.key_classes;
  p.key_order = params.key_order;
  p.num_queries = params.num_queries;
  p.num_keys = params.num_keys;
  p.dim = params.dim;
  p.key_stride = params.key_stride;
  p.num_shares = num_shares(params.num_queries, params.num_keys);
  p.partial = static_cast<Nearest<T>*>(params.partial);
  p.distance = static_cast<T*>(params.distance);
  p.index = params.index;
  search_kernel<<<grid_limit(ceil_div(p.num_tiles() * p.num_shares, kWarps), kMaxBlocks), kThreads, 0, stream>>>(p);
  merge_kernel<<<grid_limit(ceil_div(p.num_queries, kThreads), kMaxBlocks), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

int64_t class_l1_nearest_scratch_bytes(int64_t num_queries, int64_t num_keys) {
  return num_queries * num_shares(num_queries, num_keys) * static_cast<int64_t>(sizeof(Nearest<double>));
}

cudaError_t launch_class_l1_nearest(const ClassL1NearestParams& params, cudaStream_t stream) {
  if (params.num_queries == 0) {
    return cudaSuccess;
  }
  switch (params.type) {
    case LogitType::kFloat64:
      return launch<double, double>(params, stream);
    case LogitType::kFloat32:
      return launch<float, float>(params, stream);
    case LogitType::kBFloat16:
      return launch<BFloat16, float>(params, stream);
    case LogitType::kFloat16:
      return launch<Float16, float>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastood::class_l1_nearest
