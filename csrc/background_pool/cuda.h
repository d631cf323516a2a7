// Launchers of the background pool's kernels: torch-free, so that a .cu compiles in seconds and needs no torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "math.h"

namespace fastood::background_pool {

struct PoolParams {
  float* omega;     // [N]
  float* velocity;  // [N], steps only
  double* masses;   // levels of layout.h
  double* stats;    // [kStats]
  PoolLayout layout;
  PowerKind power;
  float epsilon;
};

struct PoolTotals {
  double mass;
  double weight;
  double square;
  double largest;  // mass
};

// Plan of a step, computed from its batch on the device; nothing is written if `valid` is 0.
struct PoolPlan {
  PoolStep step;
  int32_t valid;
};

// A drawn example as it was before the step; `owner` marks the first of its appearances, with the sum of its losses.
struct PoolDrawn {
  float omega;
  float velocity;
  float loss;
  int32_t owner;
};

struct PoolAscent {
  const int64_t* index;  // [B]
  const double* loss;    // [B]
  const double* shared;  // [4] Z, S, L, B of all ranks, or null
  int64_t batch;         // B
  double epsilon;
  double momentum;
  double lr;
  bool sparse;
  int64_t* status;       // [2]
  PoolPlan* plan;        // scratch, one
  PoolPlan* rescale;     // scratch, one: valid where new quanta are needed
  PoolDrawn* drawn;      // scratch, [B]
  int64_t* keys;         // scratch, [B]
  int64_t* sorted_keys;  // scratch, [B]
  void* work;            // scratch, work_bytes
  size_t work_bytes;
  int position_bits;  // of a position in the batch; a key is the index above them, and the position
  int index_bits;
  PoolTotals* partials;  // scratch, [kPoolBlocks]
};

// Blocks that walk the pool, each with its own partial sums: eight for each of the 132 SMs of an H200, of which it holds
// five at a time (a step takes 46 registers a thread, ptxas for sm_90).
constexpr int64_t kPoolBlocks = 1056;

cudaError_t launch_pool_fill(float* values, int64_t count, float value, cudaStream_t stream);
cudaError_t launch_pool_fill(double* values, int64_t count, double value, cudaStream_t stream);
cudaError_t launch_pool_sums(const PoolParams& pool, PoolTotals* partials, double* sums, cudaStream_t stream);
cudaError_t launch_pool_build(const PoolParams& pool, PoolTotals* partials, cudaStream_t stream);
// Bytes of PoolAscent::work; work_bytes receives them.
cudaError_t pool_ascend_work_bytes(const PoolAscent& ascent, size_t* work_bytes);
cudaError_t launch_pool_ascend(const PoolParams& pool, const PoolAscent& ascent, cudaStream_t stream);
cudaError_t launch_pool_draw(const PoolParams& pool, const double* uniform, int64_t count, int64_t* index,
                             float* importance, cudaStream_t stream);
cudaError_t launch_pool_find(const PoolParams& pool, const double* target, int64_t count, int64_t* index,
                             cudaStream_t stream);
cudaError_t launch_pool_importance(const PoolParams& pool, const int64_t* index, int64_t count, double* importance,
                                   cudaStream_t stream);

}  // namespace fastood::background_pool
