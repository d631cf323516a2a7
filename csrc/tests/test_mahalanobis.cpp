// The kernels of the Mahalanobis logits on this machine, in the order in which the op calls them, against long double.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../mahalanobis/cpu.h"
#include "expect.h"

namespace {

using namespace fastood;
using namespace fastood::mahalanobis;
using Real = long double;
template <typename T>
using Vector = std::vector<T>;

struct Case {
  int64_t N, K, d;
  bool diagonal = false;
  double offset = 0;
  double spread = 3;  // of the means
  double noise = 1;   // of features around their mean
  double tilt = 0.3;  // of L below its diagonal
  bool own_class_only = false;
};

void expect(bool ok, const char* what, const Case& c, double error, double allowed) {
  if (!testing::count(ok)) {
    std::printf("FAILED %s at %lldx%lldx%lld%s: error %.3g, allowed %.3g\n", what, static_cast<long long>(c.N),
                static_cast<long long>(c.K), static_cast<long long>(c.d), c.diagonal ? " diagonal" : "", error,
                allowed);
  }
}

template <typename T>
struct Operands {
  Vector<T> features, means, scale, grad;

  explicit Operands(const Case& c)
      : features(c.N * c.d), means(c.K * c.d), scale(c.diagonal ? c.d : c.d * c.d), grad(c.N * c.K) {
    std::mt19937 random(static_cast<unsigned>(c.N + 10 * c.K + 100 * c.d));
    std::normal_distribution<double> normal;
    for (T& m : means) m = static_cast<T>(c.offset + c.spread * normal(random));
    for (int64_t n = 0; n < c.N; ++n) {
      const double noise = n % 3 == 0 ? 0 : c.noise;  // every third lies on its mean
      for (int64_t j = 0; j < c.d; ++j) {
        features[n * c.d + j] = static_cast<T>(means[n % c.K * c.d + j] + noise * normal(random));
      }
      for (int64_t i = 0; i < c.K; ++i) {
        grad[n * c.K + i] = static_cast<T>(c.own_class_only && i != n % c.K ? 0 : normal(random));
      }
    }
    for (int64_t i = 0; i < c.d; ++i) {
      if (c.diagonal) {
        scale[i] = static_cast<T>(0.5 + std::fabs(normal(random)));
        continue;
      }
      for (int64_t j = 0; j < c.d; ++j) {
        const double below = c.tilt * normal(random) / std::sqrt(static_cast<double>(c.d));
        // The upper triangle is not read.
        scale[i * c.d + j] = j > i ? std::numeric_limits<T>::quiet_NaN()
                                   : static_cast<T>(j < i ? below : 0.5 + std::fabs(normal(random)));
      }
    }
  }
};

// Logits and gradients class by class, from the differences.
struct Reference {
  Vector<Real> logits, grad_features, grad_means, grad_scale;

  template <typename T>
  Reference(const Case& c, const Operands<T>& in)
      : logits(c.N * c.K), grad_features(c.N * c.d), grad_means(c.K * c.d), grad_scale(in.scale.size()) {
    Vector<Real> w(c.d), dz(c.d);
    for (int64_t n = 0; n < c.N; ++n) {
      for (int64_t i = 0; i < c.K; ++i) {
        Real distance = 0;
        for (int64_t j = 0; j < c.d; ++j) {
          Real rest = static_cast<Real>(in.features[n * c.d + j]) - in.means[i * c.d + j];
          for (int64_t k = 0; k < j && !c.diagonal; ++k) rest -= in.scale[j * c.d + k] * w[k];
          w[j] = rest / in.scale[c.diagonal ? j : j * c.d + j];
          distance += w[j] * w[j];
        }
        logits[n * c.K + i] = -distance;
        for (int64_t j = c.d; j-- > 0;) {  // dz = -2 g L^-T w
          Real rest = -2 * static_cast<Real>(in.grad[n * c.K + i]) * w[j];
          for (int64_t k = j + 1; k < c.d && !c.diagonal; ++k) rest -= in.scale[k * c.d + j] * dz[k];
          dz[j] = rest / in.scale[c.diagonal ? j : j * c.d + j];
          grad_features[n * c.d + j] += dz[j];
          grad_means[i * c.d + j] -= dz[j];
        }
        for (int64_t j = 0; j < c.d; ++j) {
          if (c.diagonal) {
            grad_scale[j] -= dz[j] * w[j];
            continue;
          }
          for (int64_t k = 0; k <= j; ++k) grad_scale[j * c.d + k] -= dz[j] * w[k];
        }
      }
    }
  }
};

// body(begin, end, workspace) on `parts` ranges of rows, as so many threads would.
template <typename Body>
void in_parts(int64_t rows, int64_t parts, const Body& body) {
  static Vector<double> workspace(kMahalanobisWorkspace);  // what it holds from before is not read
  for (int64_t part = 0; part < parts; ++part) {
    body(rows * part / parts, rows * (part + 1) / parts, workspace.data());
  }
}

template <typename T>
Vector<T> garbage(int64_t count) {
  return Vector<T>(count, std::numeric_limits<T>::quiet_NaN());
}

template <typename T>
struct Result {
  Vector<T> logits, residual, whitened_means, grad_features, grad_means, grad_scale;
  Vector<int64_t> nearest;

  Result(const Case& c, const Operands<T>& in, int64_t parts)
      : logits(garbage<T>(c.N * c.K)),
        residual(garbage<T>(c.N * c.d)),
        whitened_means(garbage<T>(c.K * c.d)),
        grad_features(garbage<T>(c.N * c.d)),
        grad_means(garbage<T>(c.K * c.d)),
        grad_scale(garbage<T>(in.scale.size())),
        nearest(c.N, -1) {
    const ScaleTril<T> scale{in.scale.data(), c.d, c.diagonal};
    const int64_t blocks = c.diagonal ? 0 : num_scale_blocks(c.d);
    auto inverses = garbage<double>(blocks * kScaleBlock * kScaleBlock);
    in_parts(blocks, parts, [&](int64_t begin, int64_t end, void* workspace) {
      FASTOOD_CPU_DISPATCH(mahalanobis_invert<T>)(scale, begin, end, inverses.data(), workspace);
    });
    forward(c, in, scale, inverses.data(), parts);
    backward(c, in, scale, inverses.data(), parts);
  }

 private:
  void forward(const Case& c, const Operands<T>& in, const ScaleTril<T>& scale, const double* inverses, int64_t parts) {
    auto centre = garbage<double>(c.d);
    auto mean_vectors = garbage<double>(c.K * c.d);
    auto mean_norms = garbage<double>(c.K);
    FASTOOD_CPU_DISPATCH(mahalanobis_centre<T>)(in.means.data(), c.K, c.d, centre.data());
    const MahalanobisForward<T> op{scale,
                                   in.features.data(),
                                   in.means.data(),
                                   c.N,
                                   c.K,
                                   centre.data(),
                                   inverses,
                                   mean_vectors.data(),
                                   mean_norms.data(),
                                   whitened_means.data(),
                                   logits.data(),
                                   nearest.data(),
                                   residual.data()};
    in_parts(c.K, parts, [&](int64_t begin, int64_t end, void* workspace) {
      FASTOOD_CPU_DISPATCH(mahalanobis_means<T>)(op, begin, end, workspace);
    });
    in_parts(c.N, parts, [&](int64_t begin, int64_t end, void* workspace) {
      const int64_t count = std::min(end - begin, feature_block(c.d));
      auto scratch = garbage<double>(count * feature_scratch(c.d));
      FASTOOD_CPU_DISPATCH(mahalanobis_features<T>)(op, begin, end, scratch.data(), workspace);
    });
  }

  void backward(const Case& c, const Operands<T>& in, const ScaleTril<T>& scale, const double* inverses,
                int64_t parts) {
    auto rest = garbage<T>(c.N * c.K);
    auto whitened = garbage<T>(c.N * c.d);
    auto common = garbage<T>(c.N * c.d);
    auto solved_means = garbage<T>(c.K * c.d);
    const MahalanobisBackward<T> op{scale,
                                    in.grad.data(),
                                    residual.data(),
                                    whitened_means.data(),
                                    nearest.data(),
                                    c.N,
                                    c.K,
                                    inverses,
                                    rest.data(),
                                    whitened.data(),
                                    common.data(),
                                    solved_means.data(),
                                    grad_features.data(),
                                    grad_means.data(),
                                    grad_scale.data()};
    in_parts(c.N, parts, [&](int64_t begin, int64_t end, void* workspace) {
      FASTOOD_CPU_DISPATCH(mahalanobis_grad_features<T>)(op, begin, end, workspace);
    });
    in_parts(c.K, parts, [&](int64_t begin, int64_t end, void* workspace) {
      FASTOOD_CPU_DISPATCH(mahalanobis_grad_classes<T>)(op, begin, end, workspace);
    });
    in_parts(c.N, parts, [&](int64_t begin, int64_t end, void* workspace) {
      FASTOOD_CPU_DISPATCH(mahalanobis_solve<T>)(scale, inverses, grad_features.data(), begin, end, workspace);
    });
    in_parts(c.K, parts, [&](int64_t begin, int64_t end, void* workspace) {
      FASTOOD_CPU_DISPATCH(mahalanobis_solve<T>)(scale, inverses, solved_means.data(), begin, end, workspace);
    });
    in_parts(c.K, parts, [&](int64_t begin, int64_t end, void*) {
      FASTOOD_CPU_DISPATCH(mahalanobis_grad_means<T>)(op, begin, end);
    });
    in_parts(c.d, parts, [&](int64_t begin, int64_t end, void* workspace) {
      FASTOOD_CPU_DISPATCH(mahalanobis_grad_scale<T>)(op, begin, end, workspace);
    });
  }
};

// The largest error, in units of the last place of the largest value.
template <typename T>
void check_gradient(const char* what, const Case& c, const Vector<T>& got, const Vector<Real>& want, double allowed) {
  Real size = 0;
  Real error = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    size = std::max(size, std::fabs(want[i]));
    error = std::isnan(got[i]) ? INFINITY : std::max<Real>(error, std::fabs(got[i] - want[i]));
  }
  const Real unit = std::numeric_limits<T>::epsilon() * size;
  expect(error <= allowed * unit, what, c, static_cast<double>(error / unit), allowed);
}

template <typename T>
void test(const Case& c) {
  const Operands<T> in(c);
  const Reference want(c, in);
  const Result<T> got(c, in, 1);
  const double eps = std::numeric_limits<T>::epsilon();
  // float64 inputs are whitened in their own precision; where L is well-conditioned that costs their offset alone.
  const double lost = std::is_same_v<T, double> ? eps * (1 + std::fabs(c.offset)) * (1 + c.spread) * c.d : 0;
  for (int64_t n = 0; n < c.N; ++n) {
    const auto row = want.logits.begin() + n * c.K;
    const Real best = *std::max_element(row, row + c.K);
    for (int64_t i = 0; i < c.K; ++i) {
      const Real value = got.logits[n * c.K + i];
      const double error = static_cast<double>(std::fabs(value - row[i]));
      const double allowed = 32 * eps * static_cast<double>(-row[i]) + 16 * lost * lost +
                             16 * lost * static_cast<double>(std::sqrt(-row[i]));
      expect(value <= 0 && error <= allowed, "logits", c, error, allowed);
    }
    const int64_t r = got.nearest[n];
    expect(r >= 0 && r < c.K && row[r] >= best * (1 + 32 * eps) - 16 * lost, "nearest", c, static_cast<double>(r), 0);
    const auto logits = got.logits.begin() + n * c.K;
    expect(r == std::max_element(logits, logits + c.K) - logits, "first of the largest", c, static_cast<double>(r), 0);
    // Near its mean, a row's logit has the digits of float64.
    const double nearest_error = static_cast<double>(std::fabs(logits[r] - row[r]));
    const double nearest_allowed = eps * static_cast<double>(-row[r]) + 1e-22 * (1 + c.offset * c.offset);
    expect(std::is_same_v<T, double> || nearest_error <= nearest_allowed, "nearest logit", c, nearest_error,
           nearest_allowed);
  }
  // A residual has the digits of float64, less what it is smaller than the vectors: of float32 none, then.
  const double allowed_gradient = 128 + (std::is_same_v<T, double> ? c.spread / c.noise : 0);
  check_gradient("grad_features", c, got.grad_features, want.grad_features, allowed_gradient);
  check_gradient("grad_means", c, got.grad_means, want.grad_means, allowed_gradient);
  check_gradient("grad_scale", c, got.grad_scale, want.grad_scale, allowed_gradient);
  for (int64_t i = 0; i < c.d && !c.diagonal; ++i) {
    for (int64_t j = i + 1; j < c.d; ++j) {
      expect(got.grad_scale[i * c.d + j] == 0, "upper triangle", c, got.grad_scale[i * c.d + j], 0);
    }
  }
  const Result<T> split(c, in, 3);
  expect(split.logits == got.logits && split.nearest == got.nearest && split.residual == got.residual &&
             split.whitened_means == got.whitened_means && split.grad_features == got.grad_features &&
             split.grad_means == got.grad_means && split.grad_scale == got.grad_scale,
         "the same bits in three parts", c, 0, 0);
}

// A bad value of a row stays there; the others keep their bits.
void test_bad_rows(int64_t d, bool diagonal) {
  const Case c{.N = 20, .K = 5, .d = d, .diagonal = diagonal};
  Operands<float> in(c);
  const Result<float> want(c, in, 1);
  const float bad[] = {NAN, INFINITY, -INFINITY};
  for (int64_t i = 0; i < 3; ++i) in.features[(6 * i + 1) * d + i % d] = bad[i];
  const Result<float> got(c, in, 1);
  for (int64_t n = 0; n < c.N; ++n) {
    const bool is_bad = n % 6 == 1 && n < 18;
    for (int64_t i = 0; i < c.K; ++i) {
      const float value = got.logits[n * c.K + i];
      expect(is_bad ? !(std::fabs(value) < INFINITY) : value == want.logits[n * c.K + i], "bad rows", c, value, 0);
    }
    expect(got.nearest[n] >= 0 && got.nearest[n] < c.K, "nearest of bad rows", c, 0, 0);
  }
}

template <typename T>
void test_all() {
  for (const bool diagonal : {false, true}) {
    for (const int64_t N : {0, 1, 7, 33}) {
      for (const int64_t K : {1, 2, 17}) {
        for (const int64_t d : {1, 2, 31, 33}) {
          test<T>({.N = N, .K = K, .d = d, .diagonal = diagonal});
        }
      }
    }
    test<T>({.N = 130, .K = 3, .d = 20, .diagonal = diagonal});
    test<T>({.N = 4, .K = 530, .d = 9, .diagonal = diagonal});
    test<T>({.N = 20, .K = 5, .d = 40, .diagonal = diagonal, .offset = 1000});
    test<T>({.N = 20, .K = 5, .d = 40, .diagonal = diagonal, .spread = 100, .noise = 1e-4, .own_class_only = true});
  }
  // Around the blocks of L, of 128 rows.
  for (const int64_t d : {127, 128, 129, 257}) {
    test<T>({.N = 9, .K = 3, .d = d});
  }
}

}  // namespace

int main() {
  test_all<float>();
  test_all<double>();
  for (const int64_t d : {3, 40, 130}) {
    test_bad_rows(d, false);
    test_bad_rows(d, true);
  }
  return testing::report(cpu_capability_name());
}
