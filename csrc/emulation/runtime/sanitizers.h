// Functions of AddressSanitizer and ThreadSanitizer: null where the process runs without them. The runtime itself is
// compiled without instrumentation, in every variant: its accesses are not those of a CUDA thread.
#pragma once

#include <cstddef>

#define FASTOOD_WEAK __attribute__((weak))

extern "C" {
FASTOOD_WEAK void* __tsan_create_fiber(unsigned flags);
FASTOOD_WEAK void* __tsan_get_current_fiber();
FASTOOD_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
FASTOOD_WEAK void __tsan_acquire(void* address);
FASTOOD_WEAK void __tsan_release(void* address);
FASTOOD_WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
FASTOOD_WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
FASTOOD_WEAK void __asan_unpoison_memory_region(const void* address, size_t size);
FASTOOD_WEAK void __asan_set_error_report_callback(void (*callback)(const char*));
// written/written.cpp, of the variant "written" alone. A region begins without a byte written.
FASTOOD_WEAK void emulation_track(void* memory, size_t size, bool of_device);
FASTOOD_WEAK void emulation_forget(void* memory);
FASTOOD_WEAK void emulation_forget_device();
FASTOOD_WEAK void emulation_mark_written(void* memory, size_t size);
}

namespace emulation {

// By functions that the other sanitizer lacks: libtsan also defines __sanitizer_start_switch_fiber.
inline bool has_tsan() {
  return __tsan_create_fiber != nullptr;
}
inline bool has_asan() {
  return __asan_unpoison_memory_region != nullptr;
}

inline void tsan_acquire(void* address) {
  if (has_tsan()) __tsan_acquire(address);
}
inline void tsan_release(void* address) {
  if (has_tsan()) __tsan_release(address);
}

inline bool has_written() {
  return emulation_track != nullptr;
}

// Instead of memset and memcpy, which ThreadSanitizer replaces: it would attribute the accesses to the CUDA thread.
inline void fill_bytes(void* to, unsigned char value, size_t size) {
  for (size_t i = 0; i < size; ++i) static_cast<volatile unsigned char*>(to)[i] = value;
}
inline void copy_bytes(void* to, const void* from, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    static_cast<volatile unsigned char*>(to)[i] = static_cast<const volatile unsigned char*>(from)[i];
  }
}

}  // namespace emulation
