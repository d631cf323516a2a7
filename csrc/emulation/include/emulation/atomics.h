// Atomic operations and fences. Operations are relaxed, as on a GPU: order comes from __threadfence alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace emulation {

// runtime/order.cpp: the order that fences and atomic operations establish, for ThreadSanitizer.
void before_atomic(const void* address);
void after_atomic(const void* address);
void fence();

template <typename T, typename Change>
T change_atomically(T* address, const Change& change) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Bits* const bits = reinterpret_cast<Bits*>(address);
  before_atomic(address);
  Bits seen = __atomic_load_n(bits, __ATOMIC_RELAXED);
  T before;
  Bits wanted;
  do {
    std::memcpy(&before, &seen, sizeof(T));
    const T after = change(before);
    std::memcpy(&wanted, &after, sizeof(T));
  } while (!__atomic_compare_exchange_n(bits, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  after_atomic(address);
  return before;
}

}  // namespace emulation

// Overloads rather than templates: the value converts to the type of the memory, as with CUDA's.
#define FASTOOD_EMULATED_EXCHANGE(T)                                        \
  inline T atomicExch(T* address, T value) {                                \
    return emulation::change_atomically(address, [=](T) { return value; }); \
  }
#define FASTOOD_EMULATED_ADD(T)                                                                       \
  inline T atomicAdd(T* address, T value) {                                                           \
    return emulation::change_atomically(address, [=](T old) { return static_cast<T>(old + value); }); \
  }
#define FASTOOD_EMULATED_MINIMUM(T)                                                                 \
  inline T atomicMin(T* address, T value) {                                                         \
    return emulation::change_atomically(address, [=](T old) { return value < old ? value : old; }); \
  }                                                                                                 \
  inline T atomicMax(T* address, T value) {                                                         \
    return emulation::change_atomically(address, [=](T old) { return old < value ? value : old; }); \
  }
#define FASTOOD_EMULATED_BITS(T)                                                                        \
  inline T atomicAnd(T* address, T value) {                                                             \
    return emulation::change_atomically(address, [=](T old) { return old & value; });                   \
  }                                                                                                     \
  inline T atomicOr(T* address, T value) {                                                              \
    return emulation::change_atomically(address, [=](T old) { return old | value; });                   \
  }                                                                                                     \
  inline T atomicCAS(T* address, T expected, T value) {                                                 \
    return emulation::change_atomically(address, [=](T old) { return old == expected ? value : old; }); \
  }
FASTOOD_EMULATED_EXCHANGE(int)
FASTOOD_EMULATED_EXCHANGE(unsigned)
FASTOOD_EMULATED_EXCHANGE(unsigned long long)
FASTOOD_EMULATED_EXCHANGE(float)
FASTOOD_EMULATED_ADD(int)
FASTOOD_EMULATED_ADD(unsigned)
FASTOOD_EMULATED_ADD(unsigned long long)
FASTOOD_EMULATED_ADD(float)
FASTOOD_EMULATED_ADD(double)
FASTOOD_EMULATED_MINIMUM(int)
FASTOOD_EMULATED_MINIMUM(unsigned)
FASTOOD_EMULATED_MINIMUM(long long)
FASTOOD_EMULATED_MINIMUM(unsigned long long)
FASTOOD_EMULATED_BITS(int)
FASTOOD_EMULATED_BITS(unsigned)
FASTOOD_EMULATED_BITS(unsigned long long)
#undef FASTOOD_EMULATED_EXCHANGE
#undef FASTOOD_EMULATED_ADD
#undef FASTOOD_EMULATED_MINIMUM
#undef FASTOOD_EMULATED_BITS

inline void __threadfence() {
  emulation::fence();
}
