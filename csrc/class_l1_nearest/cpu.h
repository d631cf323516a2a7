// Kernels of the nearest key of a class for the CPU: single-threaded, torch-free, one copy per instruction set.
#pragma once

#include <cstdint>

#include "../common/cpu_capability.h"
#include "../common/logit_type.h"
#include "../common/reduced_float.h"
#include "math.h"

namespace fastood::class_l1_nearest {

// Queries that go through the keys together: at 512 float32 features half of them fill a level-1 cache, all of them a
// fraction of a level-2 cache, and a key fetched from memory serves them all.
constexpr int64_t kGroupQueries = 32;

// Queries of one class, and some of its keys.
template <typename Key>
struct NearestGroup {
  const Compute<Key>* queries;   // [M, dim]
  const int64_t* query_indices;  // [num_queries], rows of queries
  int64_t num_queries;           // 1…kGroupQueries
  const Key* keys;               // [N, dim], rows key_stride apart
  int64_t key_stride;
  const int64_t* key_indices;  // rows of keys, by position
  int64_t begin;               // positions
  int64_t end;
  int64_t dim;
};

#define FASTOOD_CPU_KERNELS "../class_l1_nearest/cpu_kernels.h"
#include "../common/cpu_copies.h"

}  // namespace fastood::class_l1_nearest
