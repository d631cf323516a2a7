// cub::DeviceRadixSort: stable, by the bits begin_bit … end_bit - 1 of the keys' order.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../../emulation/stream_work.h"

namespace emulation {

// Bits of the digit. The sign bit is flipped, so that signed keys have the order of integers, as in CUB.
template <typename Key>
auto radix_digit(Key key, int begin_bit, int end_bit) {
  using Bits = std::make_unsigned_t<Key>;
  constexpr int kBits = 8 * sizeof(Key);
  Bits bits = static_cast<Bits>(key) ^ (std::is_signed_v<Key> ? Bits{1} << (kBits - 1) : Bits{0});
  bits >>= begin_bit;
  const int width = end_bit - begin_bit;
  return width >= kBits ? bits : static_cast<Bits>(bits & ((Bits{1} << width) - 1));
}

template <typename Key>
void radix_sort(const Key* from, Key* to, int64_t count, int begin_bit, int end_bit) {
  std::copy(from, from + count, to);
  wrote(to, static_cast<size_t>(count) * sizeof(Key));
  std::stable_sort(to, to + count, [&](Key a, Key b) {
    return radix_digit(a, begin_bit, end_bit) < radix_digit(b, begin_bit, end_bit);
  });
}

// Odd on purpose: an allocator that rounds up does not hide a workspace that is too small.
constexpr size_t kRadixWorkBytes = 1001;

}  // namespace emulation

namespace cub {

struct DeviceRadixSort {
  template <typename Key, typename Count>
  static cudaError_t SortKeys(void* work, size_t& work_bytes, const Key* from, Key* to, Count count, int begin_bit,
                              int end_bit, cudaStream_t stream,
                              std::source_location where = std::source_location::current()) {
    if (work == nullptr) {
      work_bytes = emulation::kRadixWorkBytes;
      return cudaSuccess;
    }
    if (work_bytes < emulation::kRadixWorkBytes) return cudaErrorInvalidValue;
    return emulation::queue_work(stream, "cub::DeviceRadixSort::SortKeys", where, [=] {
      std::fill_n(static_cast<unsigned char*>(work), emulation::kRadixWorkBytes, 0xee);  // CUB may write all of it
      emulation::radix_sort(from, to, static_cast<int64_t>(count), begin_bit, end_bit);
    });
  }
};

}  // namespace cub
