// The order of memory accesses, for ThreadSanitizer: by barriers, __syncwarp, and fences around atomic operations.
//
// A thread that has passed a fence releases its earlier accesses at each later atomic operation; a fence acquires the
// accesses that were released at the addresses of the thread's atomic operations before it, as in PTX's memory model.
// Shuffles and votes do not order accesses.
#include <sys/mman.h>

#include <new>

#include "../include/emulation/atomics.h"
#include "block.h"
#include "sanitizers.h"

namespace emulation {
namespace {

constexpr size_t kArenaBytes = size_t{4} << 30;  // of addresses; memory only where it is touched
char* arena = nullptr;
size_t arena_used = 0;
char begin_tag[8];
char end_tag[8];

}  // namespace

char* fresh_memory(size_t size) {
  if (arena == nullptr) {
    void* const memory =
        mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    arena = static_cast<char*>(memory);
  }
  char* const memory = arena + arena_used;
  arena_used += (size + 63) / 64 * 64;
  if (arena_used > kArenaBytes) throw std::bad_alloc();
  return memory;
}

// Launches run one after another: each uses the arena from its start.
void begin_launch_order() {
  arena_used = 0;
  tsan_release(begin_tag);
}

void end_launch_order() {
  tsan_acquire(end_tag);
}

void begin_thread_order() {
  tsan_acquire(begin_tag);
}

void end_thread_order() {
  tsan_release(end_tag);
}

void before_atomic(const void* address) {
  if (has_tsan() && block.self().fenced) __tsan_release(const_cast<void*>(address));
}

void after_atomic(const void* address) {
  if (!has_tsan()) return;
  Thread& self = block.self();
  for (int i = 0; i < self.num_atomics; ++i) {
    if (self.atomics[i] == address) return;
  }
  if (self.num_atomics < Thread::kMaxAtomics) self.atomics[self.num_atomics++] = address;
}

void fence() {
  if (!has_tsan()) return;
  Thread& self = block.self();
  self.fenced = true;
  for (int i = 0; i < self.num_atomics; ++i) __tsan_acquire(const_cast<void*>(self.atomics[i]));
}

}  // namespace emulation
