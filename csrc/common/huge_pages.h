// Huge pages for large outputs on the CPU.
//
// The C library maps allocations above 32 MiB, and some smaller ones, directly from the system, so that the first write
// takes a page fault per 4 KiB: for a 64 MiB gradient this takes longer than computing it. If advised before the first
// write, the system maps 2 MiB at once.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastood {

inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kHugePage = size_t{1} << 21;
  constexpr size_t kWorthwhile = 2 * kHugePage;
  if (bytes < kWorthwhile) {
    return;
  }
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  // Advice only: without free huge pages it has no effect.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fastood
