// Static shared memory: a separate allocation for each variable, so that AddressSanitizer detects accesses beyond it.
#include "../include/emulation/shared.h"

#include <cstdlib>
#include <new>

#include "block.h"
#include "sanitizers.h"
#include "stream.h"

namespace emulation {

void* shared_memory(const void* key, size_t size, size_t alignment, const Place& place) {
  for (const SharedVariable& variable : block.shared_) {
    if (variable.key == key) return variable.memory;
  }
  block.shared_bytes_ = (block.shared_bytes_ + alignment - 1) / alignment * alignment + size;
  if (block.shared_bytes_ > kMaxSharedBytes) {
    block.fail(std::to_string(block.shared_bytes_) + " bytes of static shared memory, more than 48 KB, with the " +
               std::to_string(size) + " of " + text_of(place));
  }
  if (block.shared_.size() == block.shared_.capacity()) block.fail("more shared variables than are emulated");
  // malloc aligns for every type that is copied byte by byte.
  char* const memory = has_tsan() ? fresh_memory(size) : static_cast<char*>(std::malloc(size));
  if (memory == nullptr) throw std::bad_alloc();
  fill_bytes(memory, poison_byte(), size);
  if (has_written()) emulation_track(memory, size, false);
  block.shared_.push_back({key, memory});
  return memory;
}

}  // namespace emulation
