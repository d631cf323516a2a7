// The search for the nearest key of a class on this machine, pair by pair against long double, in buffers of exactly their
// size for the sanitizers to watch.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "../class_l1_nearest/cpu.h"
#include "expect.h"

namespace {

using namespace fastood;
using namespace fastood::class_l1_nearest;
using testing::expect;
using Real = long double;

// Queries and keys of one class, keys in a shuffled order and with a gap of NaN between their rows.
template <typename Key, typename T = Compute<Key>>
struct Problem {
  int64_t num_queries, num_keys, dim, key_stride;
  std::vector<T> queries;
  std::vector<Key> keys;
  std::vector<int64_t> query_indices, key_indices;

  Problem(int64_t num_queries_, int64_t num_keys_, int64_t dim_, int num_values)
      : num_queries(num_queries_), num_keys(num_keys_), dim(dim_), key_stride(dim_ + 3) {
    std::mt19937 random(static_cast<unsigned>(31 * num_queries + 7 * num_keys + dim));
    std::normal_distribution<double> normal;
    const auto value = [&] { return num_values > 0 ? static_cast<double>(random() % num_values) : normal(random); };
    for (int64_t i = 0; i < num_queries * dim; ++i) queries.push_back(static_cast<T>(value()));
    for (int64_t n = 0; n < num_keys; ++n) {
      for (int64_t j = 0; j < (n + 1 < num_keys ? key_stride : dim); ++j) {
        const double number = j < dim ? value() : std::numeric_limits<double>::quiet_NaN();
        keys.push_back(FromCompute<Key>::convert(static_cast<T>(number)));
      }
    }
    query_indices.resize(num_queries);
    key_indices.resize(num_keys);
    std::iota(query_indices.rbegin(), query_indices.rend(), 0);
    std::iota(key_indices.begin(), key_indices.end(), 0);
    std::shuffle(key_indices.begin(), key_indices.end(), random);
  }

  std::vector<Nearest<T>> search(const std::vector<int64_t>& cuts) const {
    std::vector<Nearest<T>> nearest(num_queries, Nearest<T>::none());
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      for (int64_t q = 0; q < num_queries; q += kGroupQueries) {
        const NearestGroup<Key> group{queries.data(),
                                      query_indices.data() + q,
                                      std::min(kGroupQueries, num_queries - q),
                                      keys.data(),
                                      key_stride,
                                      key_indices.data(),
                                      cuts[i],
                                      cuts[i + 1],
                                      dim};
        FASTOOD_CPU_DISPATCH(class_l1_nearest<Key>)(group, nearest.data() + q);
      }
    }
    return nearest;
  }

  Real distance(int64_t q, int64_t position) const {
    Real sum = 0;
    for (int64_t j = 0; j < dim; ++j) {
      const Key key = keys[key_indices[position] * key_stride + j];
      sum += std::fabs(static_cast<Real>(queries[query_indices[q] * dim + j]) - to_compute(key));
    }
    return sum;
  }
};

template <typename Key, typename T = Compute<Key>>
void test_search(int64_t num_queries, int64_t num_keys, int64_t dim, int num_values) {
  const Problem<Key> x(num_queries, num_keys, dim, num_values);
  const std::vector<Nearest<T>> found = x.search({0, num_keys});
  const double tolerance = std::is_same_v<T, double> ? 1e-14 : 2e-6;
  for (int64_t q = 0; q < num_queries; ++q) {
    int64_t nearest = -1;
    Real smallest = std::numeric_limits<Real>::infinity();
    for (int64_t i = 0; i < num_keys; ++i) {
      const Real distance = x.distance(q, i);
      if (distance < smallest) {
        smallest = distance;
        nearest = i;
      }
    }
    const double want = static_cast<double>(smallest);
    expect(found[q].distance == want || std::fabs(found[q].distance - want) <= tolerance * want, "distance", dim,
           found[q].distance, want);
    // Sums of small integers are exact: of equals the first.
    if (num_values > 0) expect(found[q].position == nearest, "first", dim, found[q].position, nearest);
  }
  // However the keys are cut: the same bits.
  const std::vector<Nearest<T>> in_parts = x.search({0, num_keys / 3, num_keys / 3, num_keys - num_keys / 4, num_keys});
  for (int64_t q = 0; q < num_queries; ++q) {
    const bool same = in_parts[q].distance == found[q].distance && in_parts[q].position == found[q].position;
    expect(same, "in parts", dim, in_parts[q].distance, found[q].distance);
  }
}

void test_never_nearest() {
  Problem<float> x(3, 6, 5, 0);
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int64_t n = 0; n < 6; ++n) x.keys[n * x.key_stride + n % 5] = n % 3 == 0 ? nan : n % 3 == 1 ? inf : 3e38f;
  for (int64_t n = 2; n < 6; n += 3) x.keys[n * x.key_stride + (n + 1) % 5] = -3e38f;
  for (const Nearest<float>& nearest : x.search({0, 6})) {
    expect(nearest.position == -1 && nearest.distance == inf, "no key", 0, nearest.distance, inf);
  }
  const Nearest<float> none = Nearest<float>::none();
  const float row[] = {0, nan, 1};
  expect(std::isnan(distance_or_nan(none, row, 3)), "nan query", 3, 0, nan);
  expect(distance_or_nan(none, row, 1) == inf, "finite query", 1, 0, inf);
  expect(distance_or_nan(Nearest<float>{2, 0}, row, 3) == 2, "found", 3, 0, 2);
}

void test_keys_of_class() {
  std::mt19937 random(1);
  for (int64_t count = 0; count < 40; ++count) {
    std::vector<int64_t> classes(count);
    for (int64_t& label : classes) label = static_cast<int64_t>(random() % 7) - 2;
    if (count > 5) classes[0] = std::numeric_limits<int64_t>::max();
    std::sort(classes.begin(), classes.end());
    for (const int64_t label : {-3, -1, 0, 1, 2, 3, 4, 5}) {
      const KeyRange keys = keys_of_class(classes.data(), count, label);
      const auto range = std::equal_range(classes.begin(), classes.end(), label);
      const int64_t size = label < 0 ? 0 : range.second - range.first;
      expect(keys.end - keys.begin == size, "size of class", label, keys.end - keys.begin, size);
      expect(size == 0 || keys.begin == range.first - classes.begin(), "first of class", label, keys.begin, 0);
    }
    const KeyRange last = keys_of_class(classes.data(), count, std::numeric_limits<int64_t>::max());
    expect(last.end - last.begin == (count > 5 ? 1 : 0), "largest label", count, last.end - last.begin, 1);
  }
}

}  // namespace

int main() {
  for (const int64_t dim : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 511, 512, 513, 1025, 1300}) {
    for (const auto& [queries, keys] :
         {std::pair<int64_t, int64_t>{1, 1}, {2, 3}, {3, 4}, {4, 5}, {5, 9}, {32, 8}, {33, 13}, {1, 40}, {7, 0}}) {
      for (const int num_values : {0, 3}) {
        test_search<float>(queries, keys, dim, num_values);
        test_search<double>(queries, keys, dim, num_values);
        test_search<BFloat16>(queries, keys, dim, num_values);
        test_search<Float16>(queries, keys, dim, num_values);
      }
    }
  }
  test_never_nearest();
  test_keys_of_class();
  return testing::report(cpu_capability_name());
}
