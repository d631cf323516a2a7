// Background pool on the CPU. Compiled once per instruction set (common/cpu_capability.h) and without contraction to fused
// multiply-adds (math.h), so that every copy gives the same bits.
//
// Bytes of an exact step: read and write omega and velocity, 16 N. Operations: two softplus, a root or a power, and three
// rounded sums in float64 for each example, about 90 vector instructions for 16 of them with AVX-512.
#include "cpu.h"

#include <algorithm>
#include <cmath>

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

namespace fastood::background_pool::FASTOOD_CPU_CAPABILITY {
namespace {

// Calls body.operator()<PowerKind>(): the loops hold one way of taking the power.
template <typename Body>
void with_power(PoolPower power, const Body& body) {
  switch (power.kind) {
    case PowerKind::kZero:
      return body.template operator()<PowerKind::kZero>();
    case PowerKind::kHalf:
      return body.template operator()<PowerKind::kHalf>();
    case PowerKind::kOne:
      return body.template operator()<PowerKind::kOne>();
    case PowerKind::kGeneral:
      return body.template operator()<PowerKind::kGeneral>();
  }
}

// Leaf blocks summed together: one fold of the vector lanes for eight of them, and arrays that stay in the level-1 cache.
constexpr int64_t kTile = 8 * kFanOut;

// Sums of kTile examples, exact in any order.
template <PowerKind kPower>
void sum_tile(const float* omega, float epsilon, const PoolMagic& magic, double* leaf_masses, int64_t num_leaves,
              PoolTotals* totals) {
  alignas(64) float weight[kTile];
  alignas(64) float mass[kTile];
  float largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < kTile; ++i) {
    const PoolWeight e = weigh<kPower>(omega[i], epsilon);
    weight[i] = e.weight;
    mass[i] = e.mass;
    largest = largest < e.mass ? e.mass : largest;
  }
  double weight_sum = 0;
  double square_sum = 0;
#pragma omp simd reduction(+ : weight_sum, square_sum)
  for (int64_t i = 0; i < kTile; ++i) {
    const double w = weight[i];
    weight_sum += quantise(w, magic.weight);
    square_sum += quantise(w * w, magic.square);
  }
  for (int64_t leaf = 0; leaf < num_leaves; ++leaf) {
    double mass_sum = 0;
#pragma omp simd reduction(+ : mass_sum)
    for (int64_t i = 0; i < kFanOut; ++i) {
      mass_sum += quantise(mass[leaf * kFanOut + i], magic.mass);
    }
    leaf_masses[leaf] = mass_sum;
    totals->mass += mass_sum;
  }
  totals->weight += weight_sum;
  totals->square += square_sum;
  // Rounding is monotone: the largest mass rounds to the largest rounded mass.
  totals->largest = std::max(totals->largest, quantise(largest, magic.mass));
}

template <PowerKind kPower>
void step_tile(float* omega, float* velocity, float epsilon, const PoolStep& step) {
#pragma omp simd
  for (int64_t i = 0; i < kTile; ++i) {
    const Moved moved = move_undrawn<kPower>(omega[i], velocity[i], epsilon, step);
    omega[i] = moved.omega;
    velocity[i] = moved.velocity;
  }
}

// A last tile that is not full, completed by examples without weight.
struct PaddedTile {
  alignas(64) float omega[kTile];
  alignas(64) float velocity[kTile];

  PaddedTile(const float* from, const float* from_velocity, int64_t count) {
    std::fill_n(omega, kTile, -INFINITY);
    std::fill_n(velocity, kTile, 0.0f);
    std::copy_n(from, count, omega);
    if (from_velocity != nullptr) {
      std::copy_n(from_velocity, count, velocity);
    }
  }
};

int64_t leaves_of(int64_t count) {
  return (count + kFanOut - 1) / kFanOut;
}

}  // namespace

void pool_build(const float* omega, int64_t count, PoolPower power, const PoolMagic& magic, double* leaf_masses,
                PoolTotals* totals) {
  with_power(power, [&]<PowerKind kPower>() {
    for (int64_t begin = 0; begin < count; begin += kTile, leaf_masses += kTile / kFanOut) {
      if (begin + kTile <= count) {
        sum_tile<kPower>(omega + begin, power.epsilon, magic, leaf_masses, kTile / kFanOut, totals);
      } else {
        const PaddedTile tile(omega + begin, nullptr, count - begin);
        sum_tile<kPower>(tile.omega, power.epsilon, magic, leaf_masses, leaves_of(count - begin), totals);
      }
    }
  });
}

void pool_step_undrawn(float* omega, float* velocity, int64_t count, PoolPower power, const PoolStep& step,
                       const PoolMagic& magic, double* leaf_masses, PoolTotals* totals) {
  with_power(power, [&]<PowerKind kPower>() {
    for (int64_t begin = 0; begin < count; begin += kTile, leaf_masses += kTile / kFanOut) {
      if (begin + kTile <= count) {
        step_tile<kPower>(omega + begin, velocity + begin, power.epsilon, step);
        sum_tile<kPower>(omega + begin, power.epsilon, magic, leaf_masses, kTile / kFanOut, totals);
      } else {
        PaddedTile tile(omega + begin, velocity + begin, count - begin);
        step_tile<kPower>(tile.omega, tile.velocity, power.epsilon, step);
        sum_tile<kPower>(tile.omega, power.epsilon, magic, leaf_masses, leaves_of(count - begin), totals);
        std::copy_n(tile.omega, count - begin, omega + begin);
        std::copy_n(tile.velocity, count - begin, velocity + begin);
      }
    }
  });
}

void pool_step_drawn(float* omega, float* velocity, const float* loss, int64_t count, PoolPower power,
                     const PoolStep& step) {
  with_power(power, [&]<PowerKind kPower>() {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const Moved moved = move_drawn<kPower>(omega[i], velocity[i], loss[i], power.epsilon, step);
      omega[i] = moved.omega;
      velocity[i] = moved.velocity;
    }
  });
}

void pool_evaluate(const float* omega, int64_t count, PoolPower power, float* weight, float* mass, float* rest) {
  with_power(power, [&]<PowerKind kPower>() {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const PoolExample e = evaluate<kPower>(omega[i], power.epsilon);
      const bool removed = is_removed(omega[i]);
      weight[i] = removed ? 0.0f : e.weight;
      mass[i] = removed ? 0.0f : e.mass;
      rest[i] = e.rest;
    }
  });
}

void pool_candidates(const double* uniform, int64_t count, uint32_t trial, int64_t num_examples, int64_t* index,
                     double* decision) {
  // 32-bit halves in 64-bit lanes vectorise; the 128-bit product of scale_index does not.
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const Candidate proposed = candidate(uniform[i], trial);
    index[i] = static_cast<int64_t>(proposed.index_bits);
    decision[i] = proposed.uniform;
  }
  for (int64_t i = 0; i < count; ++i) {
    index[i] = scale_index(static_cast<uint64_t>(index[i]), num_examples);
  }
}

}  // namespace fastood::background_pool::FASTOOD_CPU_CAPABILITY
