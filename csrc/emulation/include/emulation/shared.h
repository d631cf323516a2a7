// Shared memory: translate.py makes `__shared__ T x[n];` a reference to memory of the block that runs.
#pragma once

#include <type_traits>

#include "launch.h"

namespace emulation {

constexpr size_t kMaxSharedBytes = 48 << 10;

// The variable of this key in the block that runs. Its first caller in a block allocates it, filled with 0xff.
void* shared_memory(const void* key, size_t size, size_t alignment, const Place& place);

template <typename T>
T& shared(const void* key, Place place = Place::current()) {
  static_assert(sizeof(T) <= kMaxSharedBytes, "more than 48 KB of static shared memory");
  static_assert(std::is_trivially_destructible_v<T>, "shared memory has no destructors");
  return *static_cast<T*>(shared_memory(key, sizeof(T), alignof(T), place));
}

}  // namespace emulation
