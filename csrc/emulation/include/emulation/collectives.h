// Barriers, shuffles and votes. Each call carries its place, so that threads that meet at different ones are told apart.
#pragma once

#include <cstdint>
#include <type_traits>

#include "launch.h"

namespace emulation {

enum class Collective { kShuffle, kBallot, kAny, kAll, kSync };
enum class Reduction { kNone, kOr, kAnd, kCount };

// runtime/collectives.cpp
int sync_threads(int value, Reduction reduction, const Place& place);
// Hands `value` to the lanes of the mask, and returns the value of lane `source` in `result`.
void exchange(unsigned mask, const void* value, void* result, size_t size, int source, const Place& place);
unsigned vote(Collective kind, unsigned mask, bool predicate, const Place& place);
void sync_warp(unsigned mask, const Place& place);

inline int lane() {
  return static_cast<int>(threadIdx.x % 32);
}

template <typename T>
T from_lane(unsigned mask, T value, int source, const Place& place) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "no shuffle of this type is emulated");
  T result;
  exchange(mask, &value, &result, sizeof(T), source, place);
  return result;
}

}  // namespace emulation

inline void __syncthreads(emulation::Place place = emulation::Place::current()) {
  emulation::sync_threads(0, emulation::Reduction::kNone, place);
}
inline int __syncthreads_or(int predicate, emulation::Place place = emulation::Place::current()) {
  return emulation::sync_threads(predicate != 0, emulation::Reduction::kOr, place);
}
inline int __syncthreads_and(int predicate, emulation::Place place = emulation::Place::current()) {
  return emulation::sync_threads(predicate != 0, emulation::Reduction::kAnd, place);
}
inline int __syncthreads_count(int predicate, emulation::Place place = emulation::Place::current()) {
  return emulation::sync_threads(predicate != 0, emulation::Reduction::kCount, place);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, emulation::Place place = emulation::Place::current()) {
  emulation::sync_warp(mask, place);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              emulation::Place place = emulation::Place::current()) {
  const int base = emulation::lane() / width * width;
  return emulation::from_lane(mask, value, base + (source & (width - 1)), place);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  emulation::Place place = emulation::Place::current()) {
  const int own = emulation::lane();
  const int other = own ^ bits;
  return emulation::from_lane(mask, value, other / width <= own / width ? other : own, place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                 emulation::Place place = emulation::Place::current()) {
  const int own = emulation::lane();
  const int other = own - static_cast<int>(by);
  return emulation::from_lane(mask, value, other >= own / width * width ? other : own, place);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   emulation::Place place = emulation::Place::current()) {
  const int own = emulation::lane();
  const int other = own + static_cast<int>(by);
  return emulation::from_lane(mask, value, other < (own / width + 1) * width ? other : own, place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulation::Place place = emulation::Place::current()) {
  return emulation::vote(emulation::Collective::kBallot, mask, predicate != 0, place);
}
inline int __any_sync(unsigned mask, int predicate, emulation::Place place = emulation::Place::current()) {
  return emulation::vote(emulation::Collective::kAny, mask, predicate != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulation::Place place = emulation::Place::current()) {
  return emulation::vote(emulation::Collective::kAll, mask, predicate != 0, place) == mask;
}
