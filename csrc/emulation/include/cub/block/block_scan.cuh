// cub::BlockScan over a one-dimensional block.
#pragma once

#include "../../cuda_runtime.h"

namespace cub {

template <typename T, int kThreads>
class BlockScan {
 public:
  struct TempStorage {
    T of_thread[kThreads];
  };

  explicit BlockScan(TempStorage& storage, emulation::Place place = emulation::Place::current())
      : storage_(storage), place_(place) {}

  // No barrier follows the reads, as in CUB: a caller that uses the storage again needs one before.
  template <int kItems>
  void InclusiveSum(T (&input)[kItems], T (&output)[kItems], T& total) {
    T running[kItems];
    T sum = 0;
    for (int k = 0; k < kItems; ++k) running[k] = sum += input[k];
    storage_.of_thread[threadIdx.x] = sum;
    emulation::sync_threads(0, emulation::Reduction::kNone, place_);
    T before = 0;
    total = 0;
    for (int t = 0; t < kThreads; ++t) {
      if (t < static_cast<int>(threadIdx.x)) before += storage_.of_thread[t];
      total += storage_.of_thread[t];
    }
    for (int k = 0; k < kItems; ++k) output[k] = before + running[k];
  }

 private:
  TempStorage& storage_;
  emulation::Place place_;
};

}  // namespace cub
