// The program of the CUDA search for the nearest key of a class, run thread after thread, against its definition in long
// double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "../class_l1_nearest/cuda_search.h"
#include "../common/logit_type.h"
#include "emulated_threads.h"
#include "expect.h"

namespace {

using namespace fastood;
using namespace fastood::class_l1_nearest;
using testing::expect;
using Real = long double;

struct Case {
  int64_t num_queries, num_keys, dim, num_classes;
  int num_values;  // 0: normal
};

// Labels from -1, so that some rows are of no class; the last class has queries and no keys.
std::vector<int64_t> labels_of(int64_t count, int64_t num_labels, std::mt19937& random) {
  std::vector<int64_t> labels(count);
  for (int64_t& label : labels) label = static_cast<int64_t>(random() % num_labels) - 1;
  return labels;
}

std::vector<int64_t> order_of(const std::vector<int64_t>& labels) {
  std::vector<int64_t> order(labels.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
  return order;
}

std::vector<int64_t> sorted(std::vector<int64_t> labels) {
  std::sort(labels.begin(), labels.end());
  return labels;
}

template <typename Key, typename T = Compute<Key>>
void test(const Case& size, int64_t num_shares) {
  std::mt19937 random(static_cast<unsigned>(size.num_queries + 10 * size.num_keys + 100 * size.dim));
  std::normal_distribution<double> normal;
  const auto value = [&] {
    return static_cast<T>(size.num_values > 0 ? static_cast<double>(random() % size.num_values) : normal(random));
  };
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const int64_t stride = size.dim + 1;
  std::vector<T> queries(size.num_queries * size.dim);
  std::vector<Key> keys(size.num_keys * stride, FromCompute<Key>::convert(nan));
  for (T& feature : queries) feature = value();
  for (int64_t n = 0; n < size.num_keys; ++n) {
    for (int64_t j = 0; j < size.dim; ++j) keys[n * stride + j] = FromCompute<Key>::convert(value());
  }
  if (size.num_queries > 2) queries[2 * size.dim] = nan;
  if (size.num_keys > 1) keys[stride] = FromCompute<Key>::convert(nan);
  const std::vector<int64_t> query_labels = labels_of(size.num_queries, size.num_classes + 2, random);
  const std::vector<int64_t> key_labels = labels_of(size.num_keys, size.num_classes + 1, random);
  const std::vector<int64_t> query_order = order_of(query_labels), key_order = order_of(key_labels);
  const std::vector<int64_t> query_classes = sorted(query_labels), key_classes = sorted(key_labels);
  std::vector<Nearest<T>> partial(num_shares * size.num_queries, Nearest<T>{-1, -7});
  std::vector<T> distance(size.num_queries, -1);
  std::vector<int64_t> index(size.num_queries, -7);

  const SearchArgs<Key, T> args{
      queries.data(),   query_classes.data(), query_order.data(), keys.data(), key_classes.data(),
      key_order.data(), size.num_queries,     size.num_keys,      size.dim,    stride,
      num_shares,       partial.data(),       distance.data(),    index.data()};
  using Search = NearestSearch<Key, T>;
  for (int64_t tile = 0; tile < args.num_tiles(); ++tile) {
    for (int64_t share = 0; share < num_shares; ++share) {
      EmulatedWarp<typename Search::State> warp;
      Search::run(warp, tile, share, args);
    }
  }
  for (int64_t position = 0; position < size.num_queries; ++position) Search::finish(position, args);

  const double tolerance = std::is_same_v<T, double> ? 1e-14 : 2e-6;
  for (int64_t m = 0; m < size.num_queries; ++m) {
    Real smallest = std::numeric_limits<Real>::infinity();
    int64_t nearest = -1;
    bool has_keys = false;
    for (int64_t n = 0; n < size.num_keys; ++n) {
      if (query_labels[m] < 0 || key_labels[n] != query_labels[m]) continue;
      has_keys = true;
      Real sum = 0;
      for (int64_t j = 0; j < size.dim; ++j) {
        sum += std::fabs(static_cast<Real>(queries[m * size.dim + j]) - to_compute(keys[n * stride + j]));
      }
      if (sum < smallest) {
        smallest = sum;
        nearest = n;
      }
    }
    const double want = static_cast<double>(smallest);
    if (m == 2 && has_keys) {
      expect(std::isnan(distance[m]) && index[m] == -1, "nan query", m, distance[m], want);
      continue;
    }
    expect(distance[m] == want || std::fabs(distance[m] - want) <= tolerance * want, "distance", m, distance[m], want);
    expect(size.num_values == 0 || index[m] == nearest, "first", m, index[m], nearest);
    expect(index[m] < 0 ? nearest < 0 : key_labels[index[m]] == query_labels[m], "class", m, index[m], nearest);
  }
}

}  // namespace

int main() {
  for (const int64_t dim : {1, 2, 31, 32, 33, 100}) {
    for (const auto& [queries, keys, classes] : {std::array<int64_t, 3>{1, 1, 1},
                                                 {8, 4, 1},
                                                 {9, 30, 1},
                                                 {40, 100, 4},
                                                 {70, 20, 30},
                                                 {5, 0, 1},
                                                 {0, 5, 1},
                                                 {33, 7, 2}}) {
      for (const int num_values : {0, 2}) {
        for (const int64_t shares : {1, 3, 50}) {
          const Case size{queries, keys, dim, classes, num_values};
          test<float>(size, shares);
          test<double>(size, shares);
          test<BFloat16>(size, shares);
        }
      }
    }
  }
  return testing::report("emulated threads");
}
