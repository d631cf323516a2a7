// Variant "written": which bytes of shared memory, and of what an op allocates, have been written.
//
// Kernels are compiled as for ThreadSanitizer: each access calls a function of its library. This file defines these
// functions instead. A read is an error if none of its bytes was ever written; a struct that is copied whole may have
// padding.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "../block.h"
#include "../sanitizers.h"

namespace emulation {
namespace {

struct Region {
  size_t size;
  bool of_device;
  std::vector<bool> written;
};

// By the first address; never destroyed, as kernels may run until the process ends.
std::map<uintptr_t, Region>& regions = *new std::map<uintptr_t, Region>;

// The region of an address and the offset in it, or null.
Region* region_of(uintptr_t address, size_t& offset) {
  auto after = regions.upper_bound(address);
  if (after == regions.begin()) return nullptr;
  auto& [start, region] = *--after;
  offset = address - start;
  return offset < region.size ? &region : nullptr;
}

// "file:line" of an instruction, by the debug information.
std::string line_of(const void* code) {
  Dl_info info;
  if (dladdr(code, &info) == 0) return "an unknown line";
  const auto offset = reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  char command[1024];
  std::snprintf(command, sizeof(command), "addr2line -e '%s' 0x%zx", info.dli_fname, static_cast<size_t>(offset));
  char line[1024] = "an unknown line";
  if (FILE* const out = popen(command, "r"); out != nullptr) {
    if (std::fgets(line, sizeof(line), out) == nullptr) line[0] = 0;
    pclose(out);
  }
  std::string text = line;
  const size_t at = text.rfind("csrc/");
  text = text.substr(at == std::string::npos ? 0 : at);
  return text.substr(0, text.find_first_of(" \n"));
}

void write(const volatile void* address, size_t size) {
  size_t offset = 0;
  Region* const region = region_of(reinterpret_cast<uintptr_t>(address), offset);
  for (size_t i = 0; region != nullptr && i < size && offset + i < region->size; ++i)
    region->written[offset + i] = true;
}

void read(const volatile void* address, size_t size, const void* code) {
  size_t offset = 0;
  const Region* const region = region_of(reinterpret_cast<uintptr_t>(address), offset);
  if (region == nullptr || block.running() < 0) return;
  for (size_t i = 0; i < size && offset + i < region->size; ++i) {
    if (region->written[offset + i]) return;
  }
  block.fail(block.who(block.running()) + " reads " + std::to_string(size) + " bytes of " +
             (region->of_device ? "memory of the op" : "shared memory") + " that nothing has written, " +
             line_of(code));
}

}  // namespace
}  // namespace emulation

extern "C" {

void emulation_track(void* memory, size_t size, bool of_device) {
  if (memory != nullptr) {
    emulation::regions[reinterpret_cast<uintptr_t>(memory)] = {size, of_device, std::vector<bool>(size)};
  }
}
void emulation_forget(void* memory) {
  emulation::regions.erase(reinterpret_cast<uintptr_t>(memory));
}
void emulation_forget_device() {
  std::erase_if(emulation::regions, [](const auto& entry) { return entry.second.of_device; });
}
void emulation_mark_written(void* memory, size_t size) {
  emulation::write(memory, size);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* address, size_t size) {
  emulation::read(address, size, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t size) {
  emulation::write(address, size);
}

#define FASTOOD_ACCESS(name, size)                               \
  void __tsan_read##name(void* address) {                        \
    emulation::read(address, size, __builtin_return_address(0)); \
  }                                                              \
  void __tsan_write##name(void* address) {                       \
    emulation::write(address, size);                             \
  }
FASTOOD_ACCESS(1, 1)
FASTOOD_ACCESS(2, 2)
FASTOOD_ACCESS(4, 4)
FASTOOD_ACCESS(8, 8)
FASTOOD_ACCESS(16, 16)
#undef FASTOOD_ACCESS
#define FASTOOD_UNALIGNED(size)                                  \
  void __tsan_unaligned_read##size(void* address) {              \
    emulation::read(address, size, __builtin_return_address(0)); \
  }                                                              \
  void __tsan_unaligned_write##size(void* address) {             \
    emulation::write(address, size);                             \
  }
FASTOOD_UNALIGNED(2)
FASTOOD_UNALIGNED(4)
FASTOOD_UNALIGNED(8)
FASTOOD_UNALIGNED(16)
#undef FASTOOD_UNALIGNED

// For atomics.h and the guards of static variables.
#define FASTOOD_ATOMIC(bits, T)                                                                              \
  T __tsan_atomic##bits##_load(const volatile T* address, int) {                                             \
    emulation::read(address, sizeof(T), __builtin_return_address(0));                                        \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                                       \
  }                                                                                                          \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* address, T* expected, T value, int, int) {   \
    emulation::write(address, sizeof(T));                                                                    \
    return __atomic_compare_exchange_n(address, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }
FASTOOD_ATOMIC(8, uint8_t)
FASTOOD_ATOMIC(32, uint32_t)
FASTOOD_ATOMIC(64, uint64_t)
#undef FASTOOD_ATOMIC

}  // extern "C"
