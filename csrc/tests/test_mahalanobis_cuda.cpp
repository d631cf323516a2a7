// The programs of the Mahalanobis CUDA kernels, run thread after thread, against their definitions in long double.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "../mahalanobis/cuda_backward.h"
#include "../mahalanobis/cuda_class_sum.h"
#include "../mahalanobis/cuda_forward.h"
#include "emulated_threads.h"
#include "expect.h"

namespace {

using namespace fastood;
using namespace fastood::mahalanobis;
using Real = long double;

struct Case {
  int64_t N, K, d;
  bool diagonal;
};

void expect(bool ok, const char* what, const Case& at, double got, double want) {
  if (!testing::count(ok)) {
    std::printf("FAILED %s at N=%lld K=%lld d=%lld%s: got %.17g, want %.17g\n", what, static_cast<long long>(at.N),
                static_cast<long long>(at.K), static_cast<long long>(at.d), at.diagonal ? " diagonal" : "", got, want);
  }
}

// What the launchers choose by size, here by hand.
struct Variant {
  bool own_centre;
  bool own_class_sums;
  int64_t class_shares;
  int64_t factor_shares;
};

template <typename T>
struct Problem {
  Case size;
  std::vector<T> features, means, factor, grad;
  std::vector<T> logits, residual, whitened_means, grad_features, grad_means, grad_factor;
  std::vector<int64_t> nearest;

  // Means `spread` apart from each other and `offset` from zero, samples `distance` from theirs.
  Problem(const Case& size_, double spread, double offset, double distance) : size(size_) {
    std::mt19937 random(static_cast<unsigned>(size.N * 31 + size.K * 7 + size.d));
    std::normal_distribution<double> normal;
    const auto [N, K, d, diagonal] = size;
    for (int64_t i = 0; i < K * d; ++i) means.push_back(static_cast<T>(offset + spread * normal(random)));
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t j = 0; j < d; ++j) {
        features.push_back(static_cast<T>(means[n % K * d + j] + distance * normal(random)));
      }
    }
    for (int64_t a = 0; a < d; ++a) {
      for (int64_t b = 0; b < (diagonal ? 1 : d); ++b) {
        const bool on = diagonal || a == b;
        const double value = on ? 1 + std::fabs(normal(random)) : normal(random) / std::sqrt(d);
        factor.push_back(!diagonal && b > a ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(value));
      }
    }
    for (int64_t i = 0; i < N * K; ++i) grad.push_back(static_cast<T>(normal(random)));
  }

  Real factor_at(int64_t a, int64_t b) const {
    return !size.diagonal ? (b > a ? 0 : factor[a * size.d + b]) : a == b ? factor[a] : 0;
  }

  // L^-1 v
  std::vector<Real> solve(std::vector<Real> v) const {
    for (int64_t a = 0; a < size.d; ++a) {
      for (int64_t b = size.diagonal ? a : 0; b < a; ++b) v[a] -= factor_at(a, b) * v[b];
      v[a] /= factor_at(a, a);
    }
    return v;
  }

  // L^-T v
  std::vector<Real> solve_transposed(std::vector<Real> v) const {
    for (int64_t a = size.d - 1; a >= 0; --a) {
      for (int64_t b = a + 1; b < (size.diagonal ? a : size.d); ++b) v[a] -= factor_at(b, a) * v[b];
      v[a] /= factor_at(a, a);
    }
    return v;
  }

  std::vector<Real> difference(int64_t n, int64_t i) const {
    std::vector<Real> v(size.d);
    for (int64_t j = 0; j < size.d; ++j) v[j] = static_cast<Real>(features[n * size.d + j]) - means[i * size.d + j];
    return v;
  }
};

template <typename Program, int kThreads, typename State, typename... Args>
void run_blocks(int64_t num_blocks, const Args&... args) {
  const auto shared = std::make_unique<typename Program::Shared>();
  const auto block = std::make_unique<EmulatedBlock<State, kThreads>>();
  for (int64_t index = 0; index < num_blocks; ++index) Program::run(*block, *shared, index, args...);
}

// Programs on tiles take the product's shared memory.
template <typename Program>
struct OnTiles : Program {
  using Shared = typename Program::Product::Shared;
};
template <typename Program, typename Args>
void run_tiles(const Args& args) {
  run_blocks<OnTiles<Program>, kTileThreads, typename Program::Product::State>(Program::num_blocks(args), args);
}

template <Factor kFactor, typename T, typename Wide, int kRows, typename Rows>
void run_substitution(const T* factor, int64_t d, const Rows& rows) {
  using Program = Substitution<kFactor, T, Wide, kRows>;
  run_blocks<Program, kSubstitutionThreads, typename Program::State>(num_substitution_blocks(rows.num_rows, kRows),
                                                                     factor, d, rows);
}

template <typename T, int kRows, int kTile>
void forward(Problem<T>& x, const Variant& variant) {
  const auto [N, K, d, diagonal] = x.size;
  const T poison = std::numeric_limits<T>::quiet_NaN();  // of what no kernel wrote
  x.logits.assign(N * K, poison);
  x.residual.assign(N * d, poison);
  x.whitened_means.assign(K * d, poison);
  x.nearest.assign(N, -1);
  std::vector<double> whitened((N + K) * d, poison);
  std::vector<double> centre(d, poison);
  std::vector<T> norms(N + K, poison);
  const ForwardArgs<T> args{x.features.data(),
                            x.means.data(),
                            x.factor.data(),
                            N,
                            K,
                            d,
                            x.logits.data(),
                            x.residual.data(),
                            x.whitened_means.data(),
                            x.nearest.data(),
                            whitened.data(),
                            norms.data(),
                            variant.own_centre ? nullptr : centre.data()};
  if (!variant.own_centre) {
    using Centre = Centre<T>;
    run_blocks<Centre, 256, typename Centre::State>(ceil_div(d, 32), args);
  }
  const CentredRows<T> rows(args);
  if (diagonal) {
    run_substitution<Factor::kDiagonal, T, double, 1>(args.factor, d, rows);
  } else {
    run_substitution<Factor::kLower, T, double, kRows>(args.factor, d, rows);
  }
  run_tiles<Pairs<T, kTile>>(args);
  EmulatedWarp<typename Finish<T>::State> warp;
  for (int64_t n = 0; n < N; ++n) Finish<T>::run(warp, n, args);
}

template <typename T, typename Finish>
void run_class_sums(const BackwardArgs<T>& args, const T* source, const Finish& finish) {
  using Sum = ClassSum<T>;
  const auto shared = std::make_unique<typename Sum::Shared>();
  EmulatedWarp<typename Sum::State> warp;
  for (int64_t index = 0; index < Sum::num_blocks(args); ++index) {
    for (int w = 0; w < kClassWarps; ++w) Sum::add_samples(warp, *shared, w, index, args, source);
    for (int thread = 0; thread < 256; ++thread) finish(thread, *shared, index, args);
  }
}

template <typename T, int kRows, int kTile>
void backward(Problem<T>& x, const Variant& variant) {
  const auto [N, K, d, diagonal] = x.size;
  const T poison = std::numeric_limits<T>::quiet_NaN();
  x.grad_features.assign(N * d, poison);
  x.grad_means.assign(K * d, poison);
  x.grad_factor.assign(x.factor.size(), poison);
  std::vector<T> sample_gradients(N * d, poison);
  std::vector<T> class_gradients(variant.class_shares * K * d, poison);
  std::vector<T> factor_gradients(variant.factor_shares * x.factor.size(), poison);
  BackwardArgs<T> args{};
  args.grad = x.grad.data();
  args.residual = x.residual.data();
  args.whitened_means = x.whitened_means.data();
  args.nearest = x.nearest.data();
  args.factor = x.factor.data();
  args.diagonal = diagonal;
  args.num_samples = N;
  args.num_classes = K;
  args.num_features = d;
  args.grad_features = x.grad_features.data();
  args.grad_means = x.grad_means.data();
  args.grad_factor = x.grad_factor.data();
  args.sample_gradients = sample_gradients.data();
  args.class_gradients = class_gradients.data();
  args.factor_gradients = factor_gradients.data();
  args.class_shares = variant.class_shares;
  args.factor_shares = variant.factor_shares;
  args.own_class_sums = variant.own_class_sums;

  run_tiles<PairGradients<T, kTile>>(args);
  if (!variant.own_class_sums) {
    run_class_sums(args, args.sample_gradients, [](auto&&... a) { ClassSum<T>::finish_classes(a...); });
  }
  const GradientRows<T> rows(args);
  if (diagonal) {
    run_substitution<Factor::kDiagonal, T, T, 1>(args.factor, d, rows);
    using Gradient = DiagonalGradient<T>;
    run_blocks<Gradient, 256, typename Gradient::State>(Gradient::num_blocks(args), args);
  } else {
    run_substitution<Factor::kLowerFlipped, T, T, kRows>(args.factor, d, rows);
    run_tiles<FactorGradient<T, kTile>>(args);
  }
  run_class_sums(args, args.grad_features, [](auto&&... a) { ClassSum<T>::finish_means(a...); });
  for (int64_t at = 0; variant.factor_shares > 1 && at < args.factor_size(); ++at) {
    sum_factor_shares(at, args);
  }
}

// Each h against long double, relative to itself; `nearest` and the residual against the op's own logits.
template <typename T>
void check_forward(const Problem<T>& x, double tolerance, double nearest_tolerance) {
  const auto [N, K, d, diagonal] = x.size;
  for (int64_t n = 0; n < N; ++n) {
    const T* logits = x.logits.data() + n * K;
    const int64_t nearest = std::max_element(logits, logits + K) - logits;
    expect(x.nearest[n] == nearest, "nearest", x.size, x.nearest[n], nearest);
    for (int64_t i = 0; i < K; ++i) {
      const std::vector<Real> v = x.solve(x.difference(n, i));
      Real h = 0;
      for (const Real value : v) h -= value * value;
      const double distance = std::sqrt(static_cast<double>(-h));
      // What float64 keeps of a difference of numbers near 3, in units of a factor near 1; float32 inputs are exact in it.
      const double rounding = std::is_same_v<T, double> ? 3e-15 : 0;
      const double limit = (i == nearest ? nearest_tolerance : tolerance) * distance * distance + rounding * distance;
      const bool negative = logits[i] < 0 || (logits[i] == 0 && !std::signbit(logits[i]));
      expect(negative && std::fabs(static_cast<double>(logits[i] - h)) <= limit, "logit", x.size, logits[i], h);
      for (int64_t j = 0; i == nearest && j < d; ++j) {
        expect(std::fabs(static_cast<double>(x.residual[n * d + j] - v[j])) <= nearest_tolerance * distance + rounding,
               "residual", x.size, x.residual[n * d + j], v[j]);
      }
    }
  }
}

template <typename T>
void check_gradient(const char* what, const Case& size, const std::vector<T>& got, const std::vector<Real>& want,
                    double tolerance) {
  Real largest = 0;
  for (const Real value : want) largest = std::max(largest, std::fabs(value));
  for (size_t j = 0; j < want.size(); ++j) {
    expect(std::fabs(static_cast<double>(got[j] - want[j])) <= tolerance * static_cast<double>(largest), what, size,
           got[j], want[j]);
  }
}

template <typename T>
void check_backward(const Problem<T>& x, double tolerance) {
  const auto [N, K, d, diagonal] = x.size;
  std::vector<Real> grad_features(N * d), grad_means(K * d), outer(d * d), grad_factor(x.factor.size());
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t i = 0; i < K; ++i) {
      const std::vector<Real> v = x.solve(x.difference(n, i));
      const Real g = x.grad[n * K + i];
      for (int64_t a = 0; a < d; ++a) {
        grad_features[n * d + a] -= 2 * g * v[a];
        grad_means[i * d + a] += 2 * g * v[a];
        for (int64_t b = diagonal ? a : 0; b <= (diagonal ? a : d - 1); ++b) outer[b * d + a] -= 2 * g * v[a] * v[b];
      }
    }
  }
  const auto solve_rows = [&](std::vector<Real>& rows) {
    for (size_t at = 0; at < rows.size(); at += d) {
      const std::vector<Real> solved = x.solve_transposed({rows.begin() + at, rows.begin() + at + d});
      std::copy(solved.begin(), solved.end(), rows.begin() + at);
    }
  };
  solve_rows(grad_features);
  solve_rows(grad_means);
  solve_rows(outer);  // row b: L^-T of sum dv v_b
  for (int64_t a = 0; a < d; ++a) {
    for (int64_t b = diagonal ? a : 0; b <= a; ++b) grad_factor[diagonal ? a : a * d + b] = -outer[b * d + a];
  }
  check_gradient("grad_features", x.size, x.grad_features, grad_features, tolerance);
  check_gradient("grad_means", x.size, x.grad_means, grad_means, tolerance);
  check_gradient("grad_scale_tril", x.size, x.grad_factor, grad_factor, tolerance);
}

template <typename T, int kRows, int kTile>
void test(const Case& size, const Variant& variant) {
  const bool wide = std::is_same_v<T, double>;
  Problem<T> x(size, 3, 0, 1);
  forward<T, kRows, kTile>(x, variant);
  check_forward(x, wide ? 1e-13 : 3e-6, wide ? 1e-13 : 1.2e-7);
  backward<T, kRows, kTile>(x, variant);
  check_backward(x, wide ? 1e-12 : 2e-5);
}

// Means far from zero and from each other, samples on top of theirs: h to the last digit, gradients of the own class whole.
void test_near(const Case& size) {
  Problem<float> x(size, 1000 / std::sqrt(static_cast<double>(size.d)), 1000, 1e-3);
  for (int64_t n = 0; n < size.N; ++n) {
    for (int64_t i = 0; i < size.K; ++i) x.grad[n * size.K + i] = i == n % size.K ? 1.0f : 0.0f;
  }
  const Variant variant{true, true, 1, 1};
  forward<float, 1, 32>(x, variant);
  check_forward(x, 3e-6, 1.2e-7);
  backward<float, 1, 32>(x, variant);
  check_backward(x, 2e-6);
}

// Means as far from every sample as each other, or all the same: the nearest is the first of the largest final logits.
void test_equidistant(double distance) {
  Problem<float> x({60, 40, 64, false}, 3, 0, 0);
  for (int64_t i = 0; i < 40; ++i) {
    double norm = 0;
    for (int64_t j = 0; j < 64; ++j) norm += std::pow(x.means[i * 64 + j], 2);
    for (int64_t j = 0; j < 64; ++j) x.means[i * 64 + j] *= static_cast<float>(distance / std::sqrt(norm));
  }
  for (int64_t a = 0; a < 64; ++a) {
    for (int64_t b = 0; b <= a; ++b) x.factor[a * 64 + b] = a == b;
  }
  for (int64_t n = 0; n < 60; ++n) {
    for (int64_t j = 0; j < 64; ++j) x.features[n * 64 + j] = static_cast<float>(n) * 1e-9f * x.means[j];
  }
  forward<float, 1, 32>(x, {true, true, 1, 1});
  check_forward(x, 3e-6, 1.2e-7);
}

void test_special_rows() {
  const Case size{4, 3, 40, false};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Problem<float> x(size, 3, 0, 1);
  x.features[0] = nan;
  x.features[40 + 39] = std::numeric_limits<float>::infinity();
  forward<float, 8, 64>(x, {true, true, 1, 1});
  for (int64_t i = 0; i < 12; ++i) {
    expect(std::isnan(x.logits[i]) == (i < 6), "special row", size, x.logits[i], i < 6 ? nan : 0);
  }
  for (const float bad : {0.0f, -1.0f, nan, std::numeric_limits<float>::infinity()}) {
    Problem<float> y(size, 3, 0, 1);
    y.factor[39 * 40 + 39] = bad;
    forward<float, 1, 32>(y, {false, true, 1, 1});
    for (const float logit : y.logits) expect(std::isnan(logit), "bad diagonal", size, logit, nan);
  }
}

}  // namespace

int main() {
  const Variant small{true, true, 1, 1};
  const Variant large{false, false, 3, 5};
  for (const int64_t d : {1, 2, 31, 32, 33, 64, 65, 129, 200}) {
    for (const bool diagonal : {false, true}) {
      for (const auto& [N, K] : {std::pair<int64_t, int64_t>{1, 1}, {0, 3}, {7, 2}, {3, 40}, {33, 33}, {70, 5}}) {
        const Case size{N, K, d, diagonal};
        test<float, 1, 32>(size, small);
        test<float, 8, 64>(size, large);
        test<double, 2, 64>(size, large);
        test<double, 4, 32>(size, small);
      }
    }
    test_near({20, 5, d, false});
  }
  test_near({20, 5, 64, true});
  test_equidistant(5);
  test_equidistant(0);
  test_special_rows();
  return testing::report("emulated threads");
}
