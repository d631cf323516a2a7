// The background pool's maths against long double, and its kernels against each other bit for bit.
#include <cmath>
#include <random>
#include <vector>

#include "../background_pool/cpu.h"
#include "../background_pool/math.h"
#include "expect.h"

namespace {

using namespace fastood;
using namespace fastood::background_pool;
using testing::expect;

double relative_error(double got, long double want) {
  return static_cast<double>(std::fabs((got - want) / want));
}

long double exact_softplus(long double x) {
  return std::fmax(x, 0.0L) + std::log1p(std::exp(-std::fabs(x)));
}

void test_weights() {
  for (double x = -80; x <= 1e6; x = x < 90 ? x + 0.00713 : x * 1.01) {
    const auto omega = static_cast<float>(x);
    const long double w = exact_softplus(omega);
    const PoolExample half = evaluate<PowerKind::kHalf>(omega, 0.5f);
    const long double sigmoid = 1 / (1 + std::exp(-static_cast<long double>(omega)));
    expect(relative_error(half.weight, w) < 2.5e-7, "softplus", half.weight, w);
    expect(relative_error(half.mass, std::sqrt(w)) < 2.5e-7, "square root", half.mass, std::sqrt(w));
    expect(relative_error(half.slope, sigmoid / w) < 6e-7, "slope", half.slope, sigmoid / w);
    expect(half.slope <= 1 + 1e-6f, "slope's bound", half.slope, 1);
    for (const float epsilon : {0.1f, 0.3f, 0.9f}) {
      const PoolExample general = evaluate<PowerKind::kGeneral>(omega, epsilon);
      const long double p = std::pow(w, static_cast<long double>(epsilon));
      // The exponent eps log w, up to 73 of it, is rounded once.
      expect(relative_error(general.mass, p) < 6e-6, "power", general.mass, p);
      expect(relative_error(general.rest, w / p) < 6e-6, "rest", general.rest, w / p);
    }
    expect(evaluate<PowerKind::kZero>(omega, 0).mass == 1, "power zero", 0, 1);
    expect(evaluate<PowerKind::kOne>(omega, 1).mass == half.weight, "power one", 0, 1);
  }
  const PoolWeight removed = weigh<PowerKind::kZero>(-INFINITY, 0);
  expect(removed.weight == 0 && removed.mass == 0, "an example without weight", removed.mass, 0);
}

// Every node that has children has a whole block of them at the next level; a draw held back at the last one stays inside.
void test_nodes() {
  for (const int64_t count : {1, 63, 64, 65, 4096, 4097, 64 * 64 * 64, 64 * 64 * 64 + 1, 1000000000}) {
    const PoolLayout layout = pool_layout(count);
    int64_t below = count;
    for (int level = 0; level < layout.num_levels; ++level) {
      const int64_t nodes = layout.num_nodes(level);
      expect(nodes == (below + kFanOut - 1) / kFanOut, "nodes of a level", nodes, below);
      expect(nodes <= layout.size[level], "nodes with padding", nodes, layout.size[level]);
      if (level > 0) {
        expect(nodes * kFanOut == layout.size[level - 1], "children of a level", nodes, layout.size[level - 1]);
      }
      below = nodes;
    }
  }
}

// dL/domega by the text-book form, in long double.
void test_gradient() {
  const double mass_total = 900;
  const double weight_total = 1100;
  const double loss = 0.7;
  const double batch = 8;
  for (double x = -75; x <= 80; x += 0.173) {
    for (const double drawn : {0.0, 1.9}) {
      const auto omega = static_cast<float>(x);
      const PoolStep step = pool_step(loss, batch, mass_total, weight_total, 0.5, 0, 1.0);
      const Moved moved = move_drawn<PowerKind::kHalf>(omega, 0.0f, static_cast<float>(drawn), 0.5f, step);
      const long double w = exact_softplus(omega);
      const long double sigmoid = 1 / (1 + std::exp(-static_cast<long double>(omega)));
      const long double terms[3] = {loss * 0.5L / std::sqrt(w) / mass_total, -loss / weight_total,
                                    0.5L / std::sqrt(w) * (mass_total / weight_total) / batch * drawn};
      const long double want = sigmoid * (terms[0] + terms[1] + terms[2]);
      const long double scale = sigmoid * (std::fabs(terms[0]) + std::fabs(terms[1]) + std::fabs(terms[2]));
      expect(std::fabs(moved.velocity - want) < 1e-6 * scale, "gradient", moved.velocity, want);
      if (drawn == 0) {
        const Moved undrawn = move_undrawn<PowerKind::kHalf>(omega, 0.0f, 0.5f, step);
        expect(std::fabs(undrawn.velocity - want) < 1e-6 * scale, "gradient, undrawn", undrawn.velocity, want);
      }
    }
  }
  const PoolStep leap = pool_step(1e20, 1, 1, 1, 0.5, 0.9, 1e5);
  for (const float omega : {-80.0f, 0.0f, 1e6f}) {
    const Moved moved = move_drawn<PowerKind::kHalf>(omega, 3e38f, 1e20f, 0.5f, leap);
    expect(moved.omega >= kOmegaMin && moved.omega <= kOmegaMax, "a leap stays in range", moved.omega, 0);
    expect(std::isfinite(moved.velocity), "a leap stays finite", moved.velocity, 0);
  }
  expect(move(-INFINITY, 0, 1, leap).omega == -INFINITY, "an example without weight stays", 0, 0);
}

// Everything that enters a sum must come out alike of every kernel, in every position and length.
void test_kernels_agree(int64_t count, PoolPower power) {
  std::mt19937 random(static_cast<unsigned>(count));
  std::uniform_real_distribution<float> uniform(-30, 30);
  std::vector<float> omega(count);
  for (float& value : omega) value = uniform(random);
  omega[count / 2] = -INFINITY;
  std::vector<float> velocity(count, 0.25f);
  const PoolMagic magic{magic_of(0x1p-30), magic_of(0x1p-30), magic_of(0x1p-26)};
  const PoolStep step = pool_step(0.5, 4, 100, 200, power.epsilon, 0.9, 3);
  const int64_t leaves = (count + kFanOut - 1) / kFanOut;
  std::vector<double> stepped(leaves);
  PoolTotals after_step{};
  FASTOOD_CPU_DISPATCH(pool_step_undrawn)
  (omega.data(), velocity.data(), count, power, step, magic, stepped.data(), &after_step);
  std::vector<double> built(leaves);
  PoolTotals after_build{};
  FASTOOD_CPU_DISPATCH(pool_build)(omega.data(), count, power, magic, built.data(), &after_build);
  expect(stepped == built, "leaf sums of a step and of a build", stepped[0], built[0]);
  expect(after_step.weight == after_build.weight, "weights of a step", after_step.weight, after_build.weight);
  expect(after_step.square == after_build.square, "squares of a step", after_step.square, after_build.square);
  expect(after_step.largest == after_build.largest, "largest of a step", after_step.largest, after_build.largest);
  PoolTotals one_by_one{};
  for (int64_t i = 0; i < count; ++i) {
    float weight;
    float mass;
    float rest;
    FASTOOD_CPU_DISPATCH(pool_evaluate)(&omega[i], 1, power, &weight, &mass, &rest);
    one_by_one.mass += quantise(mass, magic.mass);
    one_by_one.weight += quantise(weight, magic.weight);
    one_by_one.square += quantise(static_cast<double>(weight) * weight, magic.square);
  }
  expect(one_by_one.mass == after_build.mass, "masses one by one", one_by_one.mass, after_build.mass);
  expect(one_by_one.weight == after_build.weight, "weights one by one", one_by_one.weight, after_build.weight);
  expect(one_by_one.square == after_build.square, "squares one by one", one_by_one.square, after_build.square);
}

void test_draws() {
  // Known answer of Philox4x32-10 for counter and key zero (Salmon et al. 2011).
  const Candidate first = candidate(0.0, 0);
  expect(first.index_bits == 0xe169c58d6627e8d5u, "Philox, low half", first.index_bits, 0);
  expect(first.uniform == static_cast<double>(0x9b00dbd8bc57ac4cu >> 11) * 0x1p-53, "Philox, high half", first.uniform,
         0);
  expect(scale_index(~uint64_t{0}, 1000) == 999, "largest index", scale_index(~uint64_t{0}, 1000), 999);
  // The largest uniform must stay below the total, whatever the product rounds to.
  for (const double quanta : {1.0, 3.0, 0x1p49 + 1, 0x1p52 - 1}) {
    const double total = quanta * 0x1p-20;
    const double target = draw_target(1 - 0x1p-53, total, 0x1p-20);
    expect(target == total - 0x1p-20, "largest target", target, total - 0x1p-20);
    expect(draw_target(0, total, 0x1p-20) == 0, "smallest target", 0, 0);
  }
}

void test_layout() {
  for (const int64_t size : {1LL, 64LL, 65LL, 4096LL, 4097LL, 262144LL, 262145LL, 1000000000LL}) {
    const PoolLayout layout = pool_layout(size);
    int64_t nodes = size;
    int64_t offset = 0;
    for (int level = 0; level < layout.num_levels; ++level) {
      nodes = (nodes + kFanOut - 1) / kFanOut;
      expect(layout.offset[level] == offset, "offset of a level", layout.offset[level], offset);
      expect(layout.size[level] >= nodes && layout.size[level] % kFanOut == 0, "size of a level", layout.size[level],
             nodes);
      offset += layout.size[level];
    }
    expect(nodes <= kFanOut && layout.numel == offset, "top level", nodes, kFanOut);
  }
}

}  // namespace

int main() {
  test_weights();
  test_nodes();
  test_gradient();
  for (const int64_t count : {1, 2, 63, 64, 65, 511, 512, 513, 4095, 4096}) {
    for (const float epsilon : {0.0f, 0.3f, 0.5f, 1.0f}) {
      test_kernels_agree(count, {power_kind(epsilon), epsilon});
    }
  }
  test_draws();
  test_layout();
  return testing::report(cpu_capability_name());
}
