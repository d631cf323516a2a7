// The shared maths against long double, and the row kernels of this machine against the shared maths.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "../outlier_loss/cpu.h"
#include "../outlier_loss/math.h"

namespace {

int failures = 0;
int checks = 0;

void expect(bool ok, const char* what, double got, double want) {
  ++checks;
  if (!ok) {
    ++failures;
    std::printf("FAILED %s: got %.9g, want %.9g\n", what, got, want);
  }
}

double relative_error(double got, long double want) {
  return want == 0 ? std::fabs(got) : static_cast<double>(std::fabs((got - want) / want));
}

template <typename T>
void test_exponentials(double tolerance) {
  for (double x = -60; x <= 60; x += 0.0137) {
    const T argument = static_cast<T>(x);
    const long double exact = argument;
    const double exp_error = relative_error(fastood::exp_fast(argument), std::exp(exact));
    const double expm1_error = relative_error(fastood::exp_minus(argument, T(1)), std::expm1(exact));
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
      const double error = relative_error(fastood::expm1_minus_x(argument), want);
      expect(error < 8 * tolerance, "expm1_minus_x", error, 0);
    }
  }
  for (double x = 1e-8; x < 1e30; x *= 1.0137) {
    const T argument = static_cast<T>(x);
    const long double exact = argument;
    const double log_error = relative_error(fastood::log_fast(argument), std::log(exact));
    const double log1p_error = relative_error(fastood::log1p_fast(argument), std::log1p(exact));
    expect(log_error < tolerance, "log_fast", log_error, 0);
    expect(log1p_error < tolerance, "log1p_fast", log1p_error, 0);
  }
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const T inf = std::numeric_limits<T>::infinity();
  expect(std::isnan(fastood::exp_fast(nan)), "exp_fast(nan)", fastood::exp_fast(nan), nan);
  expect(fastood::exp_minus(-inf, T(1)) == T(-1), "expm1(-inf)", fastood::exp_minus(-inf, T(1)), -1);
}

// KL(U || softmax(v)) in long double, by the same cancellation-free identity.
long double reference_loss(const std::vector<float>& v) {
  const long double K = v.size();
  long double mean = 0;
  long double sum = 0;
  for (const float value : v) mean += value / K;
  for (const float value : v) sum += std::expm1(value - mean);
  return std::log1p(sum / K);
}

void test_rows(int64_t num_rows, int64_t num_classes, double spread, double offset) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  std::vector<float> logits(num_rows * num_classes);
  for (float& value : logits) value = static_cast<float>(offset + spread * normal(random));
  std::vector<float> per_sample(num_rows);
  std::vector<float> stats(fastood::kRowStats * num_rows);
  std::vector<float> gradient(logits.size());
  FASTOOD_CPU_DISPATCH(uniformity_forward<float>)
  (logits.data(), num_classes, num_rows, num_classes, per_sample.data(), stats.data());
  FASTOOD_CPU_DISPATCH(uniformity_scale<float>)(nullptr, num_rows, num_classes, 1.0, stats.data());
  FASTOOD_CPU_DISPATCH(uniformity_backward<float>)
  (logits.data(), num_classes, num_rows, num_classes, stats.data(), 1.0, gradient.data());
  for (int64_t i = 0; i < num_rows; ++i) {
    const std::vector<float> row(logits.begin() + i * num_classes, logits.begin() + (i + 1) * num_classes);
    const double error = relative_error(per_sample[i], reference_loss(row));
    expect(error < 1e-5, "per_sample", error, 0);
    double sum = 0;
    double norm = 0;
    for (int64_t k = 0; k < num_classes; ++k) {
      sum += gradient[i * num_classes + k];
      norm += std::fabs(gradient[i * num_classes + k]);
    }
    expect(std::fabs(sum) <= 1e-5 * norm + 1e-12, "sum of the gradient of a row", sum, 0);
  }
}

void test_special_rows() {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> logits = {0, -inf, 0, 0, nan, 0, 0, inf, 0, 300, -300, 0};
  float per_sample[4];
  float stats[4 * fastood::kRowStats];
  FASTOOD_CPU_DISPATCH(uniformity_forward<float>)(logits.data(), 3, 4, 3, per_sample, stats);
  expect(per_sample[0] == inf, "a masked logit", per_sample[0], inf);
  expect(std::isnan(per_sample[1]), "a NaN logit", per_sample[1], nan);
  expect(std::isnan(per_sample[2]), "an infinite logit", per_sample[2], nan);
  expect(relative_error(per_sample[3], 300 - std::log(3.0L)) < 1e-6, "a wide row", per_sample[3], 300 - std::log(3.0));
}

void test_reduced_floats() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const fastood::Float16 half{static_cast<uint16_t>(bits)};
    const float value = fastood::to_compute(half);
    if (std::isnan(value)) continue;
    expect(fastood::FromCompute<fastood::Float16>::convert(value).bits == bits, "float16 round trip", value, bits);
    const fastood::BFloat16 brain{static_cast<uint16_t>(bits)};
    const float wide = fastood::to_compute(brain);
    if (std::isnan(wide)) continue;
    expect(fastood::FromCompute<fastood::BFloat16>::convert(wide).bits == bits, "bfloat16 round trip", wide, bits);
  }
  // Ties go to even: 1 + 2^-11 lies between 1 and 1 + 2^-10 of float16.
  expect(fastood::FromCompute<fastood::Float16>::convert(1 + 0x1p-11f).bits == 0x3c00, "tie", 0, 0);
  expect(fastood::FromCompute<fastood::Float16>::convert(65520.f).bits == 0x7c00, "overflow", 0, 0);
  expect(fastood::FromCompute<fastood::Float16>::convert(0x1p-25f).bits == 0, "underflow", 0, 0);
}

}  // namespace

int main() {
  test_exponentials<float>(3e-7);
  test_exponentials<double>(1e-15);
  for (const int64_t num_classes : {1, 2, 3, 10, 31, 32, 33, 100, 1000, 1023, 1025, 4096}) {
    for (const double spread : {1e-3, 1e-2, 0.1, 1.0, 5.0, 30.0}) {
      for (const double offset : {0.0, 10.0}) {
        test_rows(37, num_classes, spread, offset);
      }
    }
  }
  test_special_rows();
  test_reduced_floats();
  std::printf("%s: %d checks, %d failed\n", fastood::cpu_capability_name(), checks, failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
