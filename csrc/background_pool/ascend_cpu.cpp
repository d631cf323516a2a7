// torch.ops.fastood.background_pool_sums, _build and _ascend on the CPU.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "../common/huge_pages.h"
#include "batch.h"
#include "cpu.h"
#include "op.h"

namespace fastood::background_pool {
namespace {

// Examples under one node of level 2. Threads take whole ones, so that no two write the same sum.
constexpr int64_t kBlock = kFanOut * kFanOut;
// Blocks below which a second thread costs more than it saves: 65k examples, about 0.1 ms.
constexpr int64_t kGrain = 16;
// Drawn examples that go through the vector kernels together.
constexpr int64_t kTile = 256;

PoolPower power_of(double epsilon) {
  return {power_kind(epsilon), static_cast<float>(epsilon)};
}

int64_t num_blocks(int64_t num_examples) {
  return (num_examples + kBlock - 1) / kBlock;
}

// Calls body(block, begin, count) for every block, in parallel.
template <typename Body>
void parallel_blocks(int64_t num_examples, const Body& body) {
  torch::stable::parallel_for(0, num_blocks(num_examples), kGrain, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      body(block, block * kBlock, std::min(kBlock, num_examples - block * kBlock));
    }
  });
}

struct State {
  float* omega;
  float* velocity;  // null while building
  double* masses;
  double* stats;
  PoolLayout layout;
  PoolPower power;

  PoolMagic magic() const {
    return {magic_of(stats[kMassQuantum]), magic_of(stats[kWeightQuantum]), magic_of(stats[kSquareQuantum])};
  }
};

// Visits every block with leaves(begin, count, leaf_masses, totals), then sums the levels above. Sums are exact, so that
// neither the threads nor the order of the fold matter.
template <typename Leaves>
void sum_pool(const State& state, const Leaves& leaves) {
  std::vector<PoolTotals> blocks(num_blocks(state.layout.num_examples));
  parallel_blocks(state.layout.num_examples, [&](int64_t block, int64_t begin, int64_t count) {
    leaves(begin, count, state.masses + begin / kFanOut, &blocks[block]);
  });
  PoolTotals total{};
  for (size_t block = 0; block < blocks.size(); ++block) {
    if (state.layout.num_levels > 1) {
      state.masses[state.layout.offset[1] + static_cast<int64_t>(block)] = blocks[block].mass;
    }
    total.mass += blocks[block].mass;
    total.weight += blocks[block].weight;
    total.square += blocks[block].square;
    total.largest = std::max(total.largest, blocks[block].largest);
  }
  for (int level = 2; level < state.layout.num_levels; ++level) {
    const double* children = state.masses + state.layout.offset[level - 1];
    double* nodes = state.masses + state.layout.offset[level];
    for (int64_t node = 0; node * kFanOut < state.layout.size[level - 1]; ++node) {
      double sum = 0;
      for (int64_t i = 0; i < kFanOut; ++i) {
        sum += children[node * kFanOut + i];
      }
      nodes[node] = sum;
    }
  }
  state.stats[kMassTotal] = total.mass;
  state.stats[kWeightTotal] = total.weight;
  state.stats[kSquareTotal] = total.square;
  state.stats[kBound] = total.largest;
}

// Moves the sums above one example by the changes of its mass, weight and square.
void move_sums(const State& state, int64_t index, double mass, double weight, double square) {
  for (int level = 0; level < state.layout.num_levels; ++level) {
    index >>= kFanOutBits;
    state.masses[state.layout.offset[level] + index] += mass;
  }
  state.stats[kMassTotal] += mass;
  state.stats[kWeightTotal] += weight;
  state.stats[kSquareTotal] += square;
}

// Builds all sums by the quanta in stats.
void build(const State& state) {
  const PoolMagic magic = state.magic();
  sum_pool(state, [&](int64_t begin, int64_t count, double* leaf_masses, PoolTotals* totals) {
    FASTOOD_CPU_DISPATCH(pool_build)(state.omega + begin, count, state.power, magic, leaf_masses, totals);
  });
}

// Plain sums, which are not rounded.
PoolTotals sum_plainly(const float* omega, int64_t num_examples, PoolPower power) {
  std::vector<PoolTotals> blocks(num_blocks(num_examples));
  parallel_blocks(num_examples, [&](int64_t block, int64_t begin, int64_t count) {
    std::array<double, kFanOut> leaf_masses;
    FASTOOD_CPU_DISPATCH(pool_build)(omega + begin, count, power, PoolMagic{}, leaf_masses.data(), &blocks[block]);
  });
  PoolTotals total{};
  for (const PoolTotals& block : blocks) {
    total.mass += block.mass;
    total.weight += block.weight;
    total.square += block.square;
  }
  return total;
}

// Chooses quanta for the current weights, and builds all sums by them.
void rescale(const State& state) {
  const PoolTotals total = sum_plainly(state.omega, state.layout.num_examples, state.power);
  state.stats[kMassQuantum] = choose_quantum(total.mass);
  state.stats[kWeightQuantum] = choose_quantum(total.weight);
  state.stats[kSquareQuantum] = choose_quantum(total.square);
  build(state);
}

// The drawn examples as they were before the step.
struct Drawn {
  std::vector<float> omega;
  std::vector<float> velocity;

  Drawn(const State& state, const std::vector<int64_t>& index) : omega(index.size()), velocity(index.size()) {
    for (size_t j = 0; j < index.size(); ++j) {
      omega[j] = state.omega[index[j]];
      velocity[j] = state.velocity[index[j]];
    }
  }
};

// Steps the drawn examples from where they were before the batch. In an exact step the pass over the pool has moved them
// as if undrawn; the sums are corrected by the difference to the present omega.
void step_drawn(const State& state, const PoolBatch& batch, Drawn* drawn, const PoolStep& step) {
  alignas(64) float before[kTile];
  alignas(64) float weight_before[kTile];
  alignas(64) float mass_before[kTile];
  alignas(64) float weight[kTile];
  alignas(64) float mass[kTile];
  alignas(64) float unused[kTile];
  const PoolMagic magic = state.magic();
  double bound = state.stats[kBound];
  const auto size = static_cast<int64_t>(batch.index.size());
  for (int64_t begin = 0; begin < size; begin += kTile) {
    const int64_t count = std::min(kTile, size - begin);
    const int64_t* index = batch.index.data() + begin;
    float* omega = drawn->omega.data() + begin;
    float* velocity = drawn->velocity.data() + begin;
    for (int64_t j = 0; j < count; ++j) {
      before[j] = state.omega[index[j]];
    }
    FASTOOD_CPU_DISPATCH(pool_evaluate)(before, count, state.power, weight_before, mass_before, unused);
    FASTOOD_CPU_DISPATCH(pool_step_drawn)
    (omega, velocity, batch.loss.data() + begin, count, state.power, step);
    FASTOOD_CPU_DISPATCH(pool_evaluate)(omega, count, state.power, weight, mass, unused);
    for (int64_t j = 0; j < count; ++j) {
      const double p = quantise(mass[j], magic.mass);
      const double w = weight[j];
      const double w_before = weight_before[j];
      move_sums(state, index[j], p - quantise(mass_before[j], magic.mass),
                quantise(w, magic.weight) - quantise(w_before, magic.weight),
                quantise(w * w, magic.square) - quantise(w_before * w_before, magic.square));
      bound = std::max(bound, p);
      state.omega[index[j]] = omega[j];
      state.velocity[index[j]] = velocity[j];
    }
  }
  state.stats[kBound] = bound;
}

// Draws and sparse steps touch a large pool at random: with 4 KiB pages most of their time would be spent on address
// translation. Huge pages must be advised before the first write.
template <typename T>
void fill_pages(const Tensor& state, double value) {
  auto* data = static_cast<T*>(state.mutable_data_ptr());
  advise_huge_pages(data, state.numel() * sizeof(T));
  torch::stable::parallel_for(0, state.numel(), 1 << 20, [&](int64_t begin, int64_t end) {
    std::fill(data + begin, data + end, static_cast<T>(value));
  });
}

void fill_cpu(const Tensor& state, double value) {
  STD_TORCH_CHECK(state.is_contiguous(), "state must be contiguous");
  if (state.scalar_type() == ScalarType::Double) {
    return fill_pages<double>(state, value);
  }
  check_dtype(state, "state", ScalarType::Float);
  fill_pages<float>(state, value);
}

Tensor sums_cpu(const Tensor& omega, double epsilon) {
  check_omega(omega, epsilon);
  const auto* values = static_cast<const float*>(omega.const_data_ptr());
  const PoolTotals total = sum_plainly(values, omega.numel(), power_of(epsilon));
  const Tensor sums = torch::stable::new_empty(omega, {3}, ScalarType::Double);
  auto* out = static_cast<double*>(sums.mutable_data_ptr());
  out[0] = total.mass;
  out[1] = total.weight;
  out[2] = total.square;
  return sums;
}

void build_cpu(const Tensor& omega, const Tensor& masses, const Tensor& stats, double epsilon) {
  check_omega(omega, epsilon);
  check_masses(masses, omega);
  check_stats(stats, omega);
  const State state{static_cast<float*>(omega.mutable_data_ptr()),
                    nullptr,
                    static_cast<double*>(masses.mutable_data_ptr()),
                    static_cast<double*>(stats.mutable_data_ptr()),
                    pool_layout(omega.numel()),
                    power_of(epsilon)};
  build(state);
}

Tensor ascend_cpu(const Tensor& omega, const Tensor& velocity, const Tensor& masses, const Tensor& stats,
                  const Tensor& index, const Tensor& loss, const std::optional<Tensor>& shared, double epsilon,
                  double momentum, double lr, bool sparse) {
  check_omega(omega, epsilon);
  check_vector(velocity, "velocity", ScalarType::Float, omega);
  check_size(velocity, "velocity", omega.numel());
  check_masses(masses, omega);
  check_stats(stats, omega);
  check_vector(index, "index", ScalarType::Long, omega);
  check_vector(loss, "loss", ScalarType::Double, omega);
  check_size(loss, "loss", index.numel());
  check_step(momentum, lr);
  const State state{static_cast<float*>(omega.mutable_data_ptr()),
                    static_cast<float*>(velocity.mutable_data_ptr()),
                    static_cast<double*>(masses.mutable_data_ptr()),
                    static_cast<double*>(stats.mutable_data_ptr()),
                    pool_layout(omega.numel()),
                    power_of(epsilon)};
  const Tensor status = torch::stable::new_empty(omega, {2}, ScalarType::Long);
  auto* found = static_cast<int64_t*>(status.mutable_data_ptr());
  found[1] = -1;
  const double* losses = static_cast<const double*>(loss.const_data_ptr());
  const auto* indices = static_cast<const int64_t*>(index.const_data_ptr());
  const int64_t batch_size = index.numel();

  // 1) the batch, before anything is changed
  for (int64_t b = 0; b < batch_size; ++b) {
    const bool inside = indices[b] >= 0 && indices[b] < state.layout.num_examples;
    if (!inside || !(losses[b] >= 0 && losses[b] < INFINITY)) {
      found[0] = inside ? kBadLoss : kBadIndex;
      found[1] = b;
      return status;
    }
    __builtin_prefetch(state.omega + indices[b], 1);
    __builtin_prefetch(state.velocity + indices[b], 1);
    __builtin_prefetch(state.masses + (indices[b] >> kFanOutBits), 1);
  }
  PoolReach reach{state.stats[kMassTotal], state.stats[kWeightTotal], 0, static_cast<double>(batch_size)};
  if (shared.has_value()) {
    check_vector(*shared, "shared", ScalarType::Double, omega);
    check_size(*shared, "shared", 4);
    const auto* values = static_cast<const double*>(shared->const_data_ptr());
    reach = {values[0], values[1], values[2], values[3]};
  } else {
    STD_TORCH_CHECK(batch_size >= 1, "index must have at least one example");
    reach.loss = batch_loss(state.omega, indices, losses, batch_size, state.power, reach);
  }
  if (!is_small_enough(reach.loss, lr, reach.mass_total, reach.weight_total)) {
    found[0] = kTooLarge;
    return status;
  }
  const PoolStep step = pool_step(reach.loss, reach.batch, reach.mass_total, reach.weight_total, epsilon, momentum, lr);

  // 2) the pool, then the drawn examples
  const PoolBatch batch(indices, losses, batch_size);
  Drawn drawn(state, batch.index);
  if (!sparse) {
    const PoolMagic magic = state.magic();
    sum_pool(state, [&](int64_t begin, int64_t count, double* leaf_masses, PoolTotals* totals) {
      FASTOOD_CPU_DISPATCH(pool_step_undrawn)
      (state.omega + begin, state.velocity + begin, count, state.power, step, magic, leaf_masses, totals);
    });
  }
  step_drawn(state, batch, &drawn, step);
  bool room = true;
  for (int i = 0; i < 3; ++i) {
    room = room && has_room(state.stats[kMassTotal + i], state.stats[kMassQuantum + i]);
  }
  found[0] = room || !shared.has_value() ? kDone : kNeedsBuild;
  if (!room && !shared.has_value()) {
    rescale(state);
  }
  return status;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("background_pool_fill", TORCH_BOX(&fill_cpu));
  m.impl("background_pool_sums", TORCH_BOX(&sums_cpu));
  m.impl("background_pool_build", TORCH_BOX(&build_cpu));
  m.impl("background_pool_ascend", TORCH_BOX(&ascend_cpu));
}

}  // namespace fastood::background_pool
