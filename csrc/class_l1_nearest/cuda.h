// Launcher of the search for the nearest key of a class: torch-free, so that the .cu compiles in seconds and needs no torch
// headers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/logit_type.h"

namespace fastood::class_l1_nearest {

// T is double for float64 keys, float for all others.
struct ClassL1NearestParams {
  LogitType type;                // of keys
  const void* queries;           // T [M, d]
  const int64_t* query_classes;  // [M], sorted
  const int64_t* query_order;    // [M]
  const void* keys;              // [N, d], rows key_stride apart
  const int64_t* key_classes;    // [N], sorted
  const int64_t* key_order;      // [N]
  int64_t num_queries;           // M
  int64_t num_keys;              // N
  int64_t dim;                   // d
  int64_t key_stride;
  void* distance;  // T [M]
  int64_t* index;  // [M]
  void* partial;   // scratch, class_l1_nearest_scratch_bytes
};

int64_t class_l1_nearest_scratch_bytes(int64_t num_queries, int64_t num_keys);
cudaError_t launch_class_l1_nearest(const ClassL1NearestParams& params, cudaStream_t stream);

}  // namespace fastood::class_l1_nearest
