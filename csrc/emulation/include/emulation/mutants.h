// Variant "mutants": translate.py numbers the sites that it can spoil (make wrong); emu_switch_off(number) spoils one
// at run time.
#pragma once

#include <type_traits>

#include "atomics.h"
#include "collectives.h"

namespace emulation {

// The site that is spoiled, 0 for none.
extern int switched_off;
// Set by a spoiled warp.each until its __syncwarp; by a function that is never instrumented, so that it is no race.
extern bool skips_syncwarp;
void skip_next_syncwarp();

inline bool off(int site) {
  return site == switched_off;
}

// A bound that is one too small.
inline int one(int site) {
  return off(site) ? 1 : 0;
}

inline unsigned mask(int site, unsigned whole) {
  return off(site) ? whole & 0x0000ffffu : whole;
}

// `sum += term` of a spoiled site becomes `sum = term`.
template <typename T>
T& accumulator(int site, T& sum) {
  if (off(site)) sum = T{};
  return sum;
}

inline void each(int site) {
  if (off(site)) skip_next_syncwarp();
}

// Atomics that store the value, whatever was there.
struct AtomicAdd {
  int site;
  template <typename T, typename V>
  T operator()(T* address, V value) const {
    return off(site) ? change_atomically(address, [=](T) { return static_cast<T>(value); }) : atomicAdd(address, value);
  }
};
struct AtomicMin {
  int site;
  template <typename T, typename V>
  T operator()(T* address, V value) const {
    return off(site) ? change_atomically(address, [=](T) { return static_cast<T>(value); }) : atomicMin(address, value);
  }
};
struct AtomicMax {
  int site;
  template <typename T, typename V>
  T operator()(T* address, V value) const {
    return off(site) ? change_atomically(address, [=](T) { return static_cast<T>(value); }) : atomicMax(address, value);
  }
};

}  // namespace emulation
