// torch.ops.fastood.background_pool_draw, _find and _importance on the CPU.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <tuple>
#include <vector>

#include "cpu.h"
#include "op.h"

namespace fastood::background_pool {
namespace {

// Draws taken side by side: enough for their cache misses to overlap, few enough for their state to stay in cache.
constexpr int64_t kTile = 1024;
// Tiles below which a second thread costs more than it saves: a draw takes some 20 ns, waking a thread up to a hundred
// thousand on a busy machine.
constexpr int64_t kGrain = 16;

struct PoolView {
  const float* omega;
  const double* masses;
  const double* stats;
  PoolLayout layout;
  PoolPower power;
};

void prefetch_block(const void* block, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) {
    __builtin_prefetch(static_cast<const char*>(block) + line);
  }
}

// The child that holds `target`, which becomes the target within it. All sums are exact, so that target < total leads to a
// child of positive mass: the running sum passes target at that child, and so grows there.
int64_t find_child(const double* children, double* target) {
  std::array<double, 8> groups{};
  for (int64_t g = 0; g < 8; ++g) {
    const double* c = children + 8 * g;
    groups[g] = ((c[0] + c[1]) + (c[2] + c[3])) + ((c[4] + c[5]) + (c[6] + c[7]));
  }
  double rest = *target;
  int64_t group = 0;
  while (group < 7 && rest >= groups[group]) {
    rest -= groups[group++];
  }
  int64_t child = 8 * group;
  while (child < kFanOut - 1 && rest >= children[child]) {
    rest -= children[child++];
  }
  *target = rest;
  return child;
}

int64_t find_in_leaf(const PoolView& pool, int64_t leaf, double target) {
  alignas(64) float omega[kFanOut];
  alignas(64) float weight[kFanOut];
  alignas(64) float mass[kFanOut];
  alignas(64) float rest[kFanOut];
  alignas(64) double rounded[kFanOut];
  const int64_t begin = leaf * kFanOut;
  const int64_t count = std::min(kFanOut, pool.layout.num_examples - begin);
  std::fill_n(omega, kFanOut, -INFINITY);
  std::copy_n(pool.omega + begin, count, omega);
  FASTOOD_CPU_DISPATCH(pool_evaluate)(omega, kFanOut, pool.power, weight, mass, rest);
  const double magic = magic_of(pool.stats[kMassQuantum]);
  for (int64_t i = 0; i < kFanOut; ++i) {
    rounded[i] = quantise(mass[i], magic);
  }
  return begin + find_child(rounded, &target);
}

// The examples at `target` of the running sum of masses, for up to kTile targets. Level by level over the batch: the
// children of the next level are prefetched while the other draws descend this one. False if a draw left the pool and
// was clamped to its end, which happens only for masses that do not belong to omega.
bool find(const PoolView& pool, const double* targets, int64_t count, int64_t* index) {
  std::array<double, kTile> rest;
  std::copy_n(targets, count, rest.begin());
  std::fill_n(index, count, 0);
  bool inside = true;
  for (int level = pool.layout.num_levels - 1; level >= 0; --level) {
    const double* nodes = pool.masses + pool.layout.offset[level];
    const int64_t last = pool.layout.num_nodes(level) - 1;
    for (int64_t b = 0; b < count; ++b) {
      const int64_t child = index[b] * kFanOut + find_child(nodes + index[b] * kFanOut, &rest[b]);
      inside &= child <= last;
      index[b] = std::min(child, last);
      if (level > 0) {
        prefetch_block(pool.masses + pool.layout.offset[level - 1] + index[b] * kFanOut, kFanOut * sizeof(double));
      } else {
        prefetch_block(pool.omega + index[b] * kFanOut, kFanOut * sizeof(float));
      }
    }
  }
  for (int64_t b = 0; b < count; ++b) {
    const int64_t example = find_in_leaf(pool, index[b], rest[b]);
    inside &= example < pool.layout.num_examples;
    index[b] = std::min(example, pool.layout.num_examples - 1);
  }
  return inside;
}

struct Gathered {
  alignas(64) float omega[kTile];
  alignas(64) float weight[kTile];
  alignas(64) float mass[kTile];
  alignas(64) float rest[kTile];

  void take(const PoolView& pool, const int64_t* index, int64_t count) {
    for (int64_t b = 0; b < count; ++b) {
      omega[b] = pool.omega[index[b]];
    }
    std::fill(omega + count, omega + whole_vectors(count), 0.0f);
    FASTOOD_CPU_DISPATCH(pool_evaluate)(omega, whole_vectors(count), pool.power, weight, mass, rest);
  }
};

bool draw_by_descent(const PoolView& pool, const double* uniform, int64_t count, int64_t* index) {
  std::array<double, kTile> targets;
  for (int64_t b = 0; b < count; ++b) {
    targets[b] = draw_target(uniform[b], pool.stats[kMassTotal], pool.stats[kMassQuantum]);
  }
  return find(pool, targets.data(), count, index);
}

// One trial of all pending draws at a time, so that their cache misses overlap.
bool draw_by_rejection(const PoolView& pool, const double* uniform, int64_t count, int64_t* index) {
  std::array<double, kTile> pending;
  std::array<int64_t, kTile> slot;
  std::array<int64_t, kTile> proposed;
  std::array<double, kTile> decision;
  Gathered gathered;
  std::copy_n(uniform, count, pending.begin());
  std::fill(pending.begin() + count, pending.end(), 0.0);
  for (int64_t b = 0; b < count; ++b) {
    slot[b] = b;
  }
  const double magic = magic_of(pool.stats[kMassQuantum]);
  const double bound = pool.stats[kBound];
  for (uint32_t trial = 0; count > 0 && trial < kMaxTrials; ++trial) {
    FASTOOD_CPU_DISPATCH(pool_candidates)
    (pending.data(), whole_vectors(count), trial, pool.layout.num_examples, proposed.data(), decision.data());
    for (int64_t b = 0; b < count; ++b) {
      __builtin_prefetch(pool.omega + proposed[b]);
    }
    gathered.take(pool, proposed.data(), count);
    int64_t left = 0;
    for (int64_t b = 0; b < count; ++b) {
      // Strictly: a mass of zero is never accepted.
      const bool accepted = decision[b] * bound < quantise(gathered.mass[b], magic);
      index[slot[b]] = proposed[b];
      pending[left] = pending[b];
      slot[left] = slot[b];
      left += accepted ? 0 : 1;
    }
    count = left;
  }
  bool inside = true;
  for (int64_t b = 0; b < count; ++b) {
    inside &= draw_by_descent(pool, &pending[b], 1, &index[slot[b]]);
  }
  return inside;
}

PoolView view(const Tensor& omega, const double* masses, const Tensor& stats, double epsilon) {
  return {static_cast<const float*>(omega.const_data_ptr()),
          masses,
          static_cast<const double*>(stats.const_data_ptr()),
          pool_layout(omega.numel()),
          {power_kind(epsilon), static_cast<float>(epsilon)}};
}

template <typename Body>
void parallel_tiles(int64_t count, const Body& body) {
  torch::stable::parallel_for(0, (count + kTile - 1) / kTile, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      body(tile * kTile, std::min(kTile, count - tile * kTile));
    }
  });
}

void check_inside(bool inside) {
  STD_TORCH_CHECK(inside, "masses and stats are not those of omega: build them anew");
}

std::tuple<Tensor, Tensor> draw_cpu(const Tensor& omega, const Tensor& masses, const Tensor& stats,
                                    const Tensor& uniform, double epsilon) {
  check_omega(omega, epsilon);
  check_masses(masses, omega);
  check_stats(stats, omega);
  check_vector(uniform, "uniform", ScalarType::Double, omega);
  const PoolView pool = view(omega, static_cast<const double*>(masses.const_data_ptr()), stats, epsilon);
  const double total = pool.stats[kMassTotal];
  STD_TORCH_CHECK(total > 0, "every example of the pool has weight zero: there is nothing to draw");
  const int64_t count = uniform.numel();
  const Tensor index = torch::stable::new_empty(omega, {count}, ScalarType::Long);
  const Tensor importance = torch::stable::new_empty(omega, {count}, ScalarType::Float);
  const auto* uniforms = static_cast<const double*>(uniform.const_data_ptr());
  auto* indices = static_cast<int64_t*>(index.mutable_data_ptr());
  auto* factors = static_cast<float*>(importance.mutable_data_ptr());
  for (int64_t b = 0; b < count; ++b) {
    STD_TORCH_CHECK(uniforms[b] >= 0 && uniforms[b] < 1, "uniform must be in [0, 1), got ", uniforms[b],
                    " at position ", b);
  }
  const bool reject = static_cast<double>(omega.numel()) * pool.stats[kBound] <= kWorthwhileTrials * total;
  const double ratio = total / pool.stats[kWeightTotal];
  std::atomic<bool> inside{true};
  parallel_tiles(count, [&](int64_t begin, int64_t size) {
    if (!(reject ? draw_by_rejection : draw_by_descent)(pool, uniforms + begin, size, indices + begin)) {
      inside = false;
    }
    Gathered gathered;
    gathered.take(pool, indices + begin, size);
    for (int64_t b = 0; b < size; ++b) {
      factors[begin + b] = static_cast<float>(ratio * gathered.rest[b]);
    }
  });
  check_inside(inside);
  return {index, importance};
}

Tensor find_cpu(const Tensor& omega, const Tensor& masses, const Tensor& stats, const Tensor& target, double epsilon) {
  check_omega(omega, epsilon);
  check_masses(masses, omega);
  check_stats(stats, omega);
  check_vector(target, "target", ScalarType::Double, omega);
  const PoolView pool = view(omega, static_cast<const double*>(masses.const_data_ptr()), stats, epsilon);
  const int64_t count = target.numel();
  const Tensor index = torch::stable::new_empty(omega, {count}, ScalarType::Long);
  const auto* targets = static_cast<const double*>(target.const_data_ptr());
  auto* indices = static_cast<int64_t*>(index.mutable_data_ptr());
  for (int64_t b = 0; b < count; ++b) {
    STD_TORCH_CHECK(targets[b] >= 0 && targets[b] < pool.stats[kMassTotal], "target must be in [0, ",
                    pool.stats[kMassTotal], "), got ", targets[b], " at position ", b);
  }
  std::atomic<bool> inside{true};
  parallel_tiles(count, [&](int64_t begin, int64_t size) {
    if (!find(pool, targets + begin, size, indices + begin)) {
      inside = false;
    }
  });
  check_inside(inside);
  return index;
}

Tensor importance_cpu(const Tensor& omega, const Tensor& stats, const Tensor& index, double epsilon) {
  check_omega(omega, epsilon);
  check_stats(stats, omega);
  check_vector(index, "index", ScalarType::Long, omega);
  const PoolView pool = view(omega, nullptr, stats, epsilon);
  const int64_t count = index.numel();
  const Tensor importance = torch::stable::new_empty(omega, {count}, ScalarType::Double);
  const auto* indices = static_cast<const int64_t*>(index.const_data_ptr());
  auto* factors = static_cast<double*>(importance.mutable_data_ptr());
  for (int64_t b = 0; b < count; ++b) {
    STD_TORCH_CHECK(indices[b] >= 0 && indices[b] < omega.numel(), "index must be in 0 ... ", omega.numel() - 1,
                    ", got ", indices[b]);
  }
  const double ratio = pool.stats[kMassTotal] / pool.stats[kWeightTotal];
  parallel_tiles(count, [&](int64_t begin, int64_t size) {
    Gathered gathered;
    gathered.take(pool, indices + begin, size);
    for (int64_t b = 0; b < size; ++b) {
      // A removed example has importance 0.
      factors[begin + b] = gathered.weight[b] == 0 ? 0 : ratio * gathered.rest[b];
    }
  });
  return importance;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("background_pool_draw", TORCH_BOX(&draw_cpu));
  m.impl("background_pool_find", TORCH_BOX(&find_cpu));
  m.impl("background_pool_importance", TORCH_BOX(&importance_cpu));
}

}  // namespace fastood::background_pool
