// The matrix product of common/cpu_gemm.h against long double: tile and block edges, strides, conversion, empty factors.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cpu_gemm_under_test.h"
#include "expect.h"

namespace {

using namespace fastood;

// A matrix of random numbers in a field of NaN, one of which ends the memory: a read outside it shows up as NaN or is caught by the sanitizer.
template <typename T>
struct Matrix {
  int64_t row_stride, column_stride;
  std::vector<T> data;

  Matrix(int64_t rows, int64_t columns, bool transposed, int64_t gap, unsigned seed) {
    const int64_t inner = transposed ? rows : columns;
    const int64_t pitch = inner + gap;
    row_stride = transposed ? 1 : pitch;
    column_stride = transposed ? pitch : 1;
    data.assign((transposed ? columns : rows) * pitch, std::numeric_limits<T>::quiet_NaN());
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        data[i * row_stride + j * column_stride] = static_cast<T>(normal(random));
      }
    }
  }
  T at(int64_t i, int64_t j) const { return data[i * row_stride + j * column_stride]; }
};

template <typename Call>
void run(const Call& call) {
  FASTOOD_CPU_DISPATCH(gemm_under_test<Call>)(call);
}

struct Shape {
  int64_t rows, columns, depth;
};

template <typename T, typename A, typename B>
void test_product(const Shape& s, bool transposed_a, bool transposed_b, bool add, T alpha) {
  const Matrix<A> a(s.rows, s.depth, transposed_a, 3, 1);
  const Matrix<B> b(s.depth, s.columns, transposed_b, 2, 2);
  const Matrix<T> before(s.rows, s.columns, false, 5, 3);
  Matrix<T> c = before;
  if (!add) {
    for (int64_t i = 0; i < s.rows; ++i) {  // is not read
      for (int64_t j = 0; j < s.columns; ++j) c.data[i * c.row_stride + j] = std::numeric_limits<T>::quiet_NaN();
    }
  }
  GemmCall<T, A, B> call{s.rows,       s.columns,       s.depth,       alpha,        a.data.data(),
                         a.row_stride, a.column_stride, b.data.data(), b.row_stride, b.column_stride,
                         add,          c.data.data(),   c.row_stride};
  run(call);
  // The rows of C in two calls: not another bit.
  Matrix<T> split = add ? before : Matrix<T>(s.rows, s.columns, false, 5, 4);
  const int64_t cut = s.rows / 3;
  call.c = split.data.data();
  call.rows = cut;
  run(call);
  call.a += cut * a.row_stride;
  call.c += cut * split.row_stride;
  call.rows = s.rows - cut;
  run(call);

  bool ok = true;
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t j = 0; j < s.columns; ++j) {
      long double sum = 0;
      long double size = 0;
      for (int64_t k = 0; k < s.depth; ++k) {
        // Factors are converted to the type of the product first.
        const long double term = static_cast<long double>(static_cast<T>(a.at(i, k))) * static_cast<T>(b.at(k, j));
        sum += term;
        size += std::fabs(term);
      }
      const long double old = add ? before.at(i, j) : T(0);
      const long double want = alpha * sum + old;
      const long double allowed =
          std::numeric_limits<T>::epsilon() * ((s.depth / 2 + 2) * std::fabs(alpha) * size + std::fabs(old));
      ok &= std::fabs(c.at(i, j) - want) <= allowed && c.at(i, j) == split.at(i, j);
    }
    for (int64_t j = s.columns; j < c.row_stride; ++j) ok &= std::isnan(c.at(i, j)) && std::isnan(split.at(i, j));
  }
  if (!testing::count(ok)) {
    std::printf("FAILED %lldx%lldx%lld, transposed %d %d, add %d\n", static_cast<long long>(s.rows),
                static_cast<long long>(s.columns), static_cast<long long>(s.depth), transposed_a, transposed_b, add);
  }
}

// C in the place of A, as the triangular solves have it: A is no wider than one block of the product.
template <typename T>
void test_in_place(int64_t rows, int64_t size) {
  Matrix<T> a(rows, size, false, 4, 5);
  const Matrix<double> b(size, size, true, 0, 6);
  const Matrix<T> copy = a;
  Matrix<T> want(rows, size, false, 4, 7);
  run(GemmCall<T, T, double>{rows, size, size, T(1), copy.data.data(), copy.row_stride, 1, b.data.data(), b.row_stride,
                             b.column_stride, false, want.data.data(), want.row_stride});
  run(GemmCall<T, T, double>{rows, size, size, T(1), a.data.data(), a.row_stride, 1, b.data.data(), b.row_stride,
                             b.column_stride, false, a.data.data(), a.row_stride});
  bool ok = true;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < size; ++j) ok &= a.at(i, j) == want.at(i, j);
  }
  if (!testing::count(ok)) {
    std::printf("FAILED in place, %lldx%lld\n", static_cast<long long>(rows), static_cast<long long>(size));
  }
}

void test_shape(const Shape& shape) {
  for (const bool transposed_a : {false, true}) {
    for (const bool transposed_b : {false, true}) {
      test_product<float, float, float>(shape, transposed_a, transposed_b, false, 1.0f);
      test_product<float, float, double>(shape, transposed_a, transposed_b, true, -1.0f);
      test_product<double, double, double>(shape, transposed_a, transposed_b, true, 2.0);
      test_product<double, double, float>(shape, transposed_a, transposed_b, false, -1.0);
    }
  }
}

}  // namespace

int main() {
  for (const int64_t rows : {0, 1, 5, 6, 7, 8, 9, 17}) {
    for (const int64_t columns : {0, 1, 3, 4, 8, 15, 16, 17, 31, 32, 33, 70}) {
      for (const int64_t depth : {0, 1, 2, 9}) {
        test_shape({rows, columns, depth});
      }
    }
  }
  // Around the blocks that stay in cache: 96 rows, 512 columns, depth 256.
  for (const Shape shape : {Shape{95, 33, 17},
                            {96, 32, 255},
                            {97, 31, 256},
                            {193, 9, 257},
                            {3, 511, 40},
                            {9, 512, 7},
                            {10, 513, 3},
                            {2, 1025, 513},
                            {100, 520, 260},
                            {7, 10, 1000}}) {
    test_shape(shape);
  }
  for (const int64_t rows : {1, 7, 96, 97, 200}) {
    for (const int64_t size : {1, 33, 127, 128}) {
      test_in_place<float>(rows, size);
      test_in_place<double>(rows, size);
    }
  }
  return testing::report(cpu_capability_name());
}
