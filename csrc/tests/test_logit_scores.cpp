// The row kernels of the detection scores on this machine against their definitions in long double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../logit_scores/cpu.h"
#include "expect.h"

namespace {

using namespace fastood;
using namespace fastood::logit_scores;
using testing::expect;
using Real = long double;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const char* const kNames[kNumScores] = {"msp", "max_logit", "energy", "entropy", "kl_uniform", "gen", "reject"};

// All scores by their definitions.
std::vector<Real> reference(std::vector<Real> v, const ScoreSettings& settings) {
  const std::vector<Real> reject(v.end() - settings.num_reject, v.end());
  v.resize(v.size() - settings.num_reject);
  std::sort(v.rbegin(), v.rend());
  Real others = 0;  // exp(v_k - v_0) without the largest
  Real reject_sum = 0;
  for (size_t k = 1; k < v.size(); ++k) others += std::exp(v[k] - v[0]);
  for (const Real value : reject) reject_sum += std::exp(value - v[0]);
  const Real log_sum = std::log1p(others);
  Real entropy = 0;
  Real log_f_sum = 0;
  Real gen = 0;
  const size_t gen_top = settings.gen_top == 0 ? v.size() : std::min<size_t>(settings.gen_top, v.size());
  for (size_t k = 0; k < v.size(); ++k) {
    const Real log_f = v[k] - v[0] - log_sum;
    const Real log_rest = k == 0 ? std::log(others) - log_sum : std::log1p(-std::exp(log_f));
    entropy -= std::isinf(log_f) ? 0 : std::exp(log_f) * log_f;
    log_f_sum += log_f;
    gen += k < gen_top ? std::exp(settings.gen_gamma * (log_f + log_rest)) : 0;
  }
  const Real K = v.size();
  return {std::log(others),
          -v[0],
          -(v[0] + log_sum),
          entropy,
          log_f_sum / K + std::log(K),
          gen,
          std::log(reject_sum) - log_sum};
}

template <typename T>
std::vector<T> scores_of(const std::vector<T>& logits, int64_t num_logits, const ScoreSettings& settings) {
  const int64_t num_rows = static_cast<int64_t>(logits.size()) / num_logits;
  std::vector<T> scores(kNumScores * num_rows);
  const ScoreRows<T> rows{logits.data(), num_logits, num_rows, num_logits};
  FASTOOD_CPU_DISPATCH(logit_scores<T>)(rows, settings, scores.data(), num_rows);
  return scores;
}

template <typename T>
void test_rows(int64_t num_rows, int64_t num_classes, const ScoreSettings& settings, double spread, double tolerance) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  const int64_t num_logits = num_classes + settings.num_reject;
  std::vector<T> logits(num_rows * num_logits);
  for (T& value : logits) value = static_cast<T>(spread * normal(random));
  const std::vector<T> scores = scores_of(logits, num_logits, settings);
  for (int64_t i = 0; i < num_rows; ++i) {
    const std::vector<Real> row(logits.begin() + i * num_logits, logits.begin() + (i + 1) * num_logits);
    const std::vector<Real> want = reference(row, settings);
    for (int score = 0, line = 0; score < kNumScores; ++score) {
      if (!settings.wants(static_cast<Score>(score))) continue;
      const double got = scores[line++ * num_rows + i];
      const double error = std::fabs(got - static_cast<double>(want[score]));
      // A difference of logits may be off by a rounding of theirs; kl_uniform is held to its own size.
      const double size = std::fabs(static_cast<double>(want[score]));
      const double scale =
          static_cast<Score>(score) == Score::kKlUniform ? 10 * size : std::max({size, 1.0, 4 * spread});
      expect(got == want[score] || error <= tolerance * scale, kNames[score], num_classes, got,
             static_cast<double>(want[score]));
    }
  }
}

void test_special_rows(int64_t num_classes) {
  std::vector<float> logits(5 * num_classes, -kInfinity);
  float* row = logits.data();
  row[0] = 1;               // the others are masked
  row[num_classes] = kNan;  // NaN
  row[2 * num_classes] = kInfinity;
  row[4 * num_classes] = 3e38f;  // row 3 is masked throughout
  row[4 * num_classes + 1] = -3e38f;
  const std::vector<float> scores = scores_of(logits, num_classes, {63, 0, 0.1, 2});
  for (int score = 0; score < kNumScores - 1; ++score) {
    for (int i = 1; i < 4; ++i) {
      const float got = scores[5 * score + i];
      expect(std::isnan(got), kNames[score], num_classes, got, kNan);
    }
    expect(!std::isnan(scores[5 * score + 4]), kNames[score], num_classes, scores[5 * score + 4], 0);
  }
  const float want[] = {-kInfinity, -1, -1, 0, -kInfinity, 0};
  for (int score = 0; score < kNumScores - 1; ++score) {
    expect(scores[5 * score] == want[score], kNames[score], num_classes, scores[5 * score], want[score]);
  }
}

}  // namespace

int main() {
  for (const int64_t num_classes : {1, 2, 3, 10, 31, 32, 33, 100, 255, 256, 257, 1000, 1025, 4096}) {
    for (const double spread : {1e-2, 1.0, 5.0, 30.0}) {
      for (const int64_t gen_top : {0, 1, 2, 7}) {
        for (const int64_t num_reject : {0, 3}) {
          const ScoreSettings settings{num_reject == 0 ? 63 : 127, num_reject, 0.1, gen_top};
          test_rows<float>(19, num_classes, settings, spread, 2e-6);
          test_rows<double>(3, num_classes, settings, spread, 1e-13);
        }
      }
    }
  }
  for (const int64_t num_classes : {2, 16, 300}) {
    test_special_rows(num_classes);
  }
  return testing::report(cpu_capability_name());
}
