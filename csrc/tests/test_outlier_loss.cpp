// The shared maths against long double, and the row kernels of this machine against the shared maths.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../outlier_loss/cpu.h"
#include "../outlier_loss/row.h"
#include "expect.h"

namespace {

using namespace fastood;
using namespace fastood::outlier_loss;
using testing::expect;

double relative_error(double got, long double want) {
  return want == 0 ? std::fabs(got) : static_cast<double>(std::fabs((got - want) / want));
}

template <typename T>
void test_exponentials(double tolerance) {
  for (double x = -60; x <= 60; x += 0.0137) {
    const T argument = static_cast<T>(x);
    const long double exact = argument;
    const double exp_error = relative_error(exp_fast(argument), std::exp(exact));
    const double expm1_error = relative_error(exp_minus(argument, T(1)), std::expm1(exact));
    expect(exp_error < tolerance, "exp_fast", exp_error, 0);
    expect(expm1_error < tolerance, "expm1", expm1_error, 0);
  }
  for (double x = 1e-6; x < 2; x *= 1.03) {
    for (const double sign : {-1.0, 1.0}) {
      const T argument = static_cast<T>(sign * x);
      const long double exact = argument;
      // expm1l(x) - x cancels for small x even in long double: use the series there.
      const long double want = x < 1e-3 ? exact * exact * (0.5L + exact * (1 / 6.L + exact * (1 / 24.L + exact / 120)))
                                        : std::expm1(exact) - exact;
      const double error = relative_error(expm1_minus_x(argument), want);
      expect(error < 8 * tolerance, "expm1_minus_x", error, 0);
    }
  }
  for (double x = 1e-8; x < 1e30; x *= 1.0137) {
    const T argument = static_cast<T>(x);
    const long double exact = argument;
    const double log_error = relative_error(log_fast(argument), std::log(exact));
    const double log1p_error = relative_error(log1p_fast(argument), std::log1p(exact));
    expect(log_error < tolerance, "log_fast", log_error, 0);
    expect(log1p_error < tolerance, "log1p_fast", log1p_error, 0);
  }
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const T inf = std::numeric_limits<T>::infinity();
  expect(std::isnan(exp_fast(nan)), "exp_fast(nan)", exp_fast(nan), nan);
  expect(exp_minus(-inf, T(1)) == T(-1), "expm1(-inf)", exp_minus(-inf, T(1)), -1);
}

// Loss and gradient of one row of any loss of the family in long double, straight from the table of losses.h except where
// that would cancel.
struct Reference {
  long double loss;
  std::vector<long double> gradient;
};

Reference reference_row(const LossSettings& settings, const std::vector<float>& v, int64_t target, double uniform01) {
  const int64_t K = v.size();
  const long double weight = settings.weight;
  long double mean = 0;
  long double norm = 0;
  long double largest = v[0];
  int64_t largest_class = 0;
  for (int64_t k = 0; k < K; ++k) {
    mean += static_cast<long double>(v[k]) / K;
    norm += static_cast<long double>(v[k]) * v[k];
    largest_class = v[k] > largest ? k : largest_class;
    largest = std::fmax(largest, v[k]);
  }
  long double sum = 0;
  long double sum_expm1 = 0;
  for (const float value : v) {
    sum += std::exp(value - largest);
    sum_expm1 += std::expm1(value - mean);
  }
  const long double log_sum = largest + std::log(sum);
  const long double lambda = std::log1p(sum_expm1 / K);
  const bool background = target < 0;
  Reference want{0, std::vector<long double>(K, 0)};
  const auto softmax = [&](long double scale, int64_t at, long double at_target) {
    for (int64_t k = 0; k < K; ++k) want.gradient[k] = scale * std::exp(v[k] - log_sum);
    if (at >= 0) want.gradient[at] -= at_target;
  };
  switch (settings.loss) {
    case OutlierLoss::kMagnitude: {
      const long double length = std::sqrt(norm);
      const long double short_of = std::fmax(settings.margin_id - length, 0.0L);
      want.loss = background ? norm : short_of * short_of;
      for (int64_t k = 0; k < K; ++k) {
        want.gradient[k] = background ? 2.0L * v[k] : length == 0 ? 0 : -2 * short_of * v[k] / length;
      }
      return want;
    }
    case OutlierLoss::kUniformity:
      if (!background) break;
      want.loss = lambda;
      for (int64_t k = 0; k < K; ++k) want.gradient[k] = std::expm1(v[k] - mean - lambda) / K;
      return want;
    case OutlierLoss::kEntropy:
      if (!background) break;
      for (int64_t k = 0; k < K; ++k) {  // (1 + e) x - e >= 0 with e = expm1(x), x = log(K f)
        const long double x = v[k] - mean - lambda;
        want.loss += ((1 + std::expm1(x)) * x - std::expm1(x)) / K;
      }
      for (int64_t k = 0; k < K; ++k) {
        const long double x = v[k] - mean - lambda;
        want.gradient[k] = std::exp(x) / K * (x - want.loss);
      }
      return want;
    case OutlierLoss::kEnergyMargin: {
      const long double hinge = background ? std::fmax(settings.margin_background + log_sum, 0.0L)
                                           : std::fmax(-log_sum - settings.margin_id, 0.0L);
      want.loss = background ? hinge * hinge : log_sum - v[target] + weight * hinge * hinge;
      softmax(background ? 2 * hinge : 1 - 2 * weight * hinge, target, 1);
      return want;
    }
    case OutlierLoss::kEnergy:
      want.loss = background ? log_sum : log_sum - v[target] - weight * log_sum;
      softmax(background ? 1 : 1 - weight, target, 1);
      return want;
    case OutlierLoss::kRejectClass:
      if (background) {
        target = largest_class >= K - settings.num_reject
                     ? largest_class
                     : K - settings.num_reject + static_cast<int64_t>(uniform01 * settings.num_reject);
      }
      break;
    case OutlierLoss::kIce:
    case OutlierLoss::kIceMinus:
      if (background) {
        want.loss = largest > -0.5L ? -std::log(-std::expm1(largest)) : -std::log1p(-std::exp(largest));
        want.gradient[largest_class] = 1 / std::expm1(-largest);
      } else {
        const long double likelihood = settings.loss == OutlierLoss::kIce ? weight : 0;
        want.loss = log_sum - v[target] - likelihood * v[target];
        softmax(1, target, 1 + likelihood);
      }
      return want;
    case OutlierLoss::kSigmoid:
      if (background) {
        want.loss = std::log1p(std::exp(largest));
        want.gradient[largest_class] = 1 / (1 + std::exp(-largest));
      } else {
        want.loss = log_sum - v[target] + weight * std::log1p(std::exp(-v[target]));
        softmax(1, target, 1 + weight / (1 + std::exp(v[target])));
      }
      return want;
  }
  want.loss = log_sum - v[target];
  softmax(1, target, 1);
  return want;
}

// Alternating in-distribution and background rows.
void test_rows(OutlierLoss loss, int64_t num_rows, int64_t num_classes, double spread, double offset) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  std::vector<float> logits(num_rows * num_classes);
  for (float& value : logits) value = static_cast<float>(offset + spread * normal(random));
  if (loss == OutlierLoss::kIce || loss == OutlierLoss::kIceMinus) {
    for (float& value : logits) value = -std::fabs(value) - 1e-6f;
  }
  const bool rejects = loss == OutlierLoss::kRejectClass;
  const LossSettings settings{loss, 0.3, -2.0 - spread, -1.0, rejects ? num_classes / 2 : 0, true};
  std::vector<int64_t> targets(num_rows);
  std::vector<float> uniform01(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) {
    targets[i] = i % 2 == 0 ? i % (num_classes - settings.num_reject) : kNoTarget;
    uniform01[i] = static_cast<float>(i) / num_rows;
  }
  std::vector<float> per_sample(num_rows);
  std::vector<float> stats(kRowStats * num_rows);
  std::vector<float> gradient(logits.size());
  const LossRows<float> rows{logits.data(),  num_classes, num_rows,        num_classes,
                             targets.data(), nullptr,     uniform01.data()};
  FASTOOD_CPU_DISPATCH(outlier_loss_forward<float>)(rows, settings, per_sample.data(), stats.data());
  FASTOOD_CPU_DISPATCH(outlier_loss_backward<float>)(rows, loss, stats.data(), 1.0, 1.0, gradient.data());
  for (int64_t i = 0; i < num_rows; ++i) {
    const std::vector<float> row(logits.begin() + i * num_classes, logits.begin() + (i + 1) * num_classes);
    const Reference want = reference_row(settings, row, targets[i], uniform01[i]);
    // Near uniform relative to the loss, however small; else to the size of what is subtracted, |v| or its square.
    const bool relative =
        targets[i] < 0 && (loss == OutlierLoss::kUniformity || (loss == OutlierLoss::kEntropy && spread < 2));
    const double size = std::fabs(offset) + 6 * spread + std::log(num_classes) + 3;
    const double slack = relative ? 1e-12 : 4e-7 * (loss == OutlierLoss::kEnergyMargin ? size * size : size);
    const double error = std::fabs(per_sample[i] - want.loss);
    expect(error <= 1e-5 * std::fabs(want.loss) + slack, "per_sample", per_sample[i], want.loss);
    // A hinge is what is left of an energy of that size; a confident row's entropy has next to no slope, as the difference
    // of two numbers that are known to a few units of float's last place; and so is a confident label's sigmoid term,
    // which is kept as 1 + weight s(-v_y).
    const double left_over = loss == OutlierLoss::kEnergyMargin            ? 4e-7 * size
                             : loss == OutlierLoss::kEntropy && spread > 2 ? 1e-6
                             : loss == OutlierLoss::kSigmoid               ? 1.2e-7
                                                                           : 1e-12;
    long double scale = 0;
    for (const long double g : want.gradient) scale = std::fmax(scale, std::fabs(g));
    for (int64_t k = 0; k < num_classes; ++k) {
      const double got = gradient[i * num_classes + k];
      expect(std::fabs(got - want.gradient[k]) <= 2e-5 * scale + left_over, "gradient", got, want.gradient[k]);
    }
  }
}

void test_special_rows() {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> logits = {0, -inf, 0, 0, nan, 0, 0, inf, 0, 300, -300, 0};
  float per_sample[4];
  float stats[4 * kRowStats];
  const LossRows<float> rows{logits.data(), 3, 4, 3, nullptr, nullptr, nullptr};
  const LossSettings settings{OutlierLoss::kUniformity, 1, 0, 0, 0, true};
  FASTOOD_CPU_DISPATCH(outlier_loss_forward<float>)(rows, settings, per_sample, stats);
  expect(per_sample[0] == inf, "a masked logit", per_sample[0], inf);
  expect(std::isnan(per_sample[1]), "a NaN logit", per_sample[1], nan);
  expect(std::isnan(per_sample[2]), "an infinite logit", per_sample[2], nan);
  expect(relative_error(per_sample[3], 300 - std::log(3.0L)) < 1e-6, "a wide row", per_sample[3], 300 - std::log(3.0));
}

void test_ice() {
  for (double x = 1e-7; x < 80; x *= 1.01) {
    const long double h = -static_cast<float>(x);
    const long double want = h > -0.5L ? -std::log(-std::expm1(h)) : -std::log1p(-std::exp(h));
    expect(relative_error(ice_loss(static_cast<float>(h)), want) < 1e-6, "ice_loss", h, want);
    expect(relative_error(ice_slope(static_cast<float>(h)), 1 / std::expm1(-h)) < 1e-6, "ice_slope", h, want);
  }
  expect(ice_loss(0.0f) == ice_loss(-0x1p-24f), "ice_loss(0)", ice_loss(0.0f), 24 * std::log(2));
  expect(ice_loss(-1e4f) >= 0 && ice_loss(-1e4f) < 1e-37, "ice_loss(-1e4)", ice_loss(-1e4f), 0);
}

// A last group of rows that is not full, of weights that are zero, and a sum over both kinds.
void test_totals() {
  const int64_t N = 37;
  std::vector<int64_t> targets(N);
  std::vector<float> weight(N), per_sample(N);
  double want[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < N; ++i) {
    targets[i] = i % 3 == 0 ? 5 : -1;
    weight[i] = i % 5 == 0 ? 0.f : 0.25f * i;
    per_sample[i] = i % 5 == 0 ? std::numeric_limits<float>::infinity() : 1.f + i;
    const int kind = targets[i] < 0 ? 2 : 0;
    want[kind] += weight[i] == 0 ? 0 : weight[i] * per_sample[i];
    want[kind + 1] += weight[i];
  }
  const LossRows<float> rows{nullptr, 0, N, 1, targets.data(), weight.data(), nullptr};
  RowTotals id;
  RowTotals background;
  FASTOOD_CPU_DISPATCH(outlier_loss_totals<float>)(rows, true, per_sample.data(), &id, &background);
  const double got[4] = {id.loss, id.divisor, background.loss, background.divisor};
  for (int j = 0; j < 4; ++j) expect(relative_error(got[j], want[j]) < 1e-14, "totals", got[j], want[j]);
}

// A row of infinite weight beside one of weight 1 and one of weight 0, of either kind and in both layouts: NaN is the
// gradient of the first alone, as the loss is NaN. Background counts nothing without lambda.
void test_infinite_weight(OutlierLoss loss, int64_t num_classes, double lambda) {
  const float inf = std::numeric_limits<float>::infinity();
  const int64_t N = 6;
  std::vector<float> logits(N * num_classes);
  for (size_t j = 0; j < logits.size(); ++j) logits[j] = -0.5f - static_cast<float>(j * 7 % 5);
  const bool rejects = loss == OutlierLoss::kRejectClass;
  // Margins that no row is at rest behind.
  const LossSettings settings{loss, lambda, loss == OutlierLoss::kMagnitude ? 1e3 : -1e3, 1e3, rejects ? 1 : 0, true};
  const std::vector<int64_t> targets{0, 0, 0, -1, -1, -1};
  const std::vector<float> weight{inf, 1, 0, 1, inf, 0};
  const std::vector<float> uniform01(N, 0.5f);
  std::vector<float> per_sample(N), stats(kRowStats * N), gradient(logits.size());
  const LossRows<float> rows{logits.data(), num_classes,     N, num_classes, targets.data(),
                             weight.data(), uniform01.data()};
  RowTotals id;
  RowTotals background;
  double factors[kNumFactors];
  FASTOOD_CPU_DISPATCH(outlier_loss_forward<float>)(rows, settings, per_sample.data(), stats.data());
  FASTOOD_CPU_DISPATCH(outlier_loss_totals<float>)(rows, true, per_sample.data(), &id, &background);
  store_factors(settings, id, background, factors);
  FASTOOD_CPU_DISPATCH(outlier_loss_backward<float>)
  (rows, loss, stats.data(), factors[kFactorId], factors[kFactorBackground], gradient.data());
  const double total = total_loss(settings, factors);
  expect(std::isnan(total), "loss of an infinite weight", total, inf);
  for (int64_t i = 0; i < N; ++i) {
    bool any_nan = false;
    bool any_slope = false;
    for (int64_t k = 0; k < num_classes; ++k) {
      const float g = gradient[i * num_classes + k];
      any_nan = any_nan || std::isnan(g);
      any_slope = any_slope || !(g == 0);
    }
    const bool counts = targets[i] >= 0 || lambda > 0;
    const bool wanted = weight[i] == inf && counts;
    expect(any_nan == wanted, "NaN gradient of an infinite weight", any_nan, wanted);
    expect(wanted || !any_slope, "gradient beside an infinite weight", any_slope, 0);
  }
}

void test_reduced_floats() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const Float16 half{static_cast<uint16_t>(bits)};
    const float value = to_compute(half);
    if (std::isnan(value)) continue;
    expect(FromCompute<Float16>::convert(value).bits == bits, "float16 round trip", value, bits);
    const BFloat16 brain{static_cast<uint16_t>(bits)};
    const float wide = to_compute(brain);
    if (std::isnan(wide)) continue;
    expect(FromCompute<BFloat16>::convert(wide).bits == bits, "bfloat16 round trip", wide, bits);
  }
  // Ties go to even: 1 + 2^-11 lies between 1 and 1 + 2^-10 of float16.
  expect(FromCompute<Float16>::convert(1 + 0x1p-11f).bits == 0x3c00, "tie", 0, 0);
  expect(FromCompute<Float16>::convert(65520.f).bits == 0x7c00, "overflow", 0, 0);
  expect(FromCompute<Float16>::convert(0x1p-25f).bits == 0, "underflow", 0, 0);
}

}  // namespace

int main() {
  test_exponentials<float>(3e-7);
  test_exponentials<double>(1e-15);
  for (int64_t loss = 0; loss < kNumLosses; ++loss) {
    for (const int64_t num_classes : {2, 3, 10, 31, 32, 33, 100, 1000, 1023, 1025, 2100}) {
      for (const double spread : {1e-3, 1e-2, 0.1, 1.0, 5.0, 30.0}) {
        for (const double offset : {0.0, 10.0}) {
          test_rows(static_cast<OutlierLoss>(loss), 19, num_classes, spread, offset);
        }
      }
    }
  }
  test_special_rows();
  test_ice();
  test_totals();
  for (int64_t loss = 0; loss < kNumLosses; ++loss) {
    for (const int64_t num_classes : {4, 40}) {
      for (const double lambda : {0.5, 0.0}) {
        test_infinite_weight(static_cast<OutlierLoss>(loss), num_classes, lambda);
      }
    }
  }
  test_reduced_floats();
  return testing::report(cpu_capability_name());
}
