// cub::DeviceSegmentedRadixSort: every segment as cub::DeviceRadixSort.
#pragma once

#include <stdexcept>

#include "device_radix_sort.cuh"

namespace cub {

struct DeviceSegmentedRadixSort {
  // CUB takes the numbers of keys and of segments as int; a wider one converts here, and UBSan sees what is lost.
  template <typename Key, typename Begin, typename End>
  static cudaError_t SortKeys(void* work, size_t& work_bytes, const Key* from, Key* to, int count, int segments,
                              Begin begins, End ends, int begin_bit, int end_bit, cudaStream_t stream,
                              std::source_location where = std::source_location::current()) {
    if (work == nullptr) {
      work_bytes = emulation::kRadixWorkBytes;
      return cudaSuccess;
    }
    if (work_bytes < emulation::kRadixWorkBytes) return cudaErrorInvalidValue;
    return emulation::queue_work(stream, "cub::DeviceSegmentedRadixSort::SortKeys", where, [=] {
      std::fill_n(static_cast<unsigned char*>(work), emulation::kRadixWorkBytes, 0xee);  // CUB may write all of it
      for (int s = 0; s < segments; ++s) {
        const int64_t begin = begins[s];
        const int64_t end = ends[s];
        if (begin < 0 || end < begin || end > count) {
          throw std::runtime_error("cub::DeviceSegmentedRadixSort::SortKeys: a segment reaches out of the keys");
        }
        emulation::radix_sort(from + begin, to + begin, end - begin, begin_bit, end_bit);
      }
    });
  }
};

}  // namespace cub
