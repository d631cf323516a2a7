// The threads of csrc/common/cuda_program.h one after the other: runs CUDA programs on the host, sums in the same order.
// A missing barrier goes unseen here; compute-sanitizer's racecheck finds those (benchmarks/gpu.sh).
#pragma once

#include <array>

#include "../common/cuda_program.h"

namespace fastood {

template <typename T, typename Op>
std::array<T, kLanes> butterfly(std::array<T, kLanes> values, const Op& op) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    std::array<T, kLanes> next;
    for (int lane = 0; lane < kLanes; ++lane) next[lane] = op(values[lane], values[lane ^ offset]);
    values = next;
  }
  return values;
}

template <typename State, int kThreads>
class EmulatedBlock {
 public:
  template <typename Body>
  void each(const Body& body) {
    for (int thread = 0; thread < kThreads; ++thread) body(thread, states_[thread]);
  }

  void barrier() {}

  template <typename T, int kSize>
  void broadcast(T (State::*values)[kSize], int lane) {
    for (int thread = 0; thread < kThreads; ++thread) {
      const State& from = states_[thread / kLanes * kLanes + lane];
      for (int i = 0; i < kSize; ++i) (states_[thread].*values)[i] = (from.*values)[i];
    }
  }

  template <typename T, int kSize>
  void sum_lanes(T (State::*values)[kSize]) {
    for (int first = 0; first < kThreads; first += kLanes) {
      for (int i = 0; i < kSize; ++i) {
        std::array<T, kLanes> lanes;
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = (states_[first + lane].*values)[i];
        lanes = butterfly(lanes, [](T a, T b) { return a + b; });
        for (int lane = 0; lane < kLanes; ++lane) (states_[first + lane].*values)[i] = lanes[lane];
      }
    }
  }

 private:
  std::array<State, kThreads> states_;
};

template <typename State>
class EmulatedWarp {
 public:
  template <typename Body>
  void each(const Body& body) {
    for (int lane = 0; lane < kLanes; ++lane) body(lane, states_[lane]);
  }

  template <typename Predicate>
  unsigned ballot(const Predicate& predicate) {
    unsigned bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= predicate(lane, states_[lane]) ? 1u << lane : 0u;
    return bits;
  }

  template <typename Value, typename Op>
  auto reduce(const Value& value, const Op& op) {
    std::array<decltype(value(0, states_[0])), kLanes> lanes;
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = value(lane, states_[lane]);
    return butterfly(lanes, op)[0];
  }

 private:
  std::array<State, kLanes> states_;
};

}  // namespace fastood
