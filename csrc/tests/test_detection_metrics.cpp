// Keys, ranks, statistics and draws on this machine against their definitions.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../detection_metrics/cpu.h"
#include "expect.h"

namespace {

using namespace fastood;
using namespace fastood::detection_metrics;
using testing::expect;
using Real = long double;

void expect_near(const char* what, double got, Real want) {
  expect(std::fabs(got - want) <= 1e-14L * std::fabs(want), what, got, static_cast<double>(want));
}

template <typename Score>
void test_keys() {
  constexpr Score kInf = std::numeric_limits<Score>::infinity();
  const Score ascending[] = {
      -kInf, std::numeric_limits<Score>::lowest(),     -1, -std::numeric_limits<Score>::denorm_min(),
      0,     std::numeric_limits<Score>::denorm_min(), 1,  std::numeric_limits<Score>::max(),
      kInf};
  for (size_t i = 0; i < std::size(ascending); ++i) {
    const auto key = key_of(ascending[i]);
    expect(score_of(key) == ascending[i], "score_of(key_of)", score_of(key), ascending[i]);
    expect(i == 0 || key_of(ascending[i - 1]) < key, "order of keys", 0, ascending[i]);
    expect(key < kNanKey<decltype(key)>, "below the key of NaN", 0, ascending[i]);
  }
  expect(key_of(Score(-0.0)) == key_of(Score(0)), "key of -0", 0, 0);
  const auto nan = key_of(-std::numeric_limits<Score>::quiet_NaN());
  expect(nan == kNanKey<decltype(nan)>, "key of NaN", static_cast<double>(nan), 0);
}

// The statistics of two rows by comparing all with all, each score counting as often as its weight says.
struct Expected {
  Real auroc = 0, aupr_ood = 0, aupr_id = 0, error = 1;
};

template <typename Key>
Expected brute_force(const std::vector<Key>& id, const std::vector<int32_t>& id_weight, const std::vector<Key>& ood,
                     const std::vector<int32_t>& ood_weight) {
  const auto count = [](const std::vector<Key>& keys, const std::vector<int32_t>& weights, const auto& test) {
    Real total = 0;
    for (size_t i = 0; i < keys.size(); ++i) total += test(keys[i]) ? weights[i] : 0;
    return total;
  };
  const auto all = [](Key) { return true; };
  const Real num_id = count(id, id_weight, all);
  const Real num_ood = count(ood, ood_weight, all);
  Expected found;
  for (size_t j = 0; j < ood.size(); ++j) {
    const Real below = count(id, id_weight, [&](Key key) { return key < ood[j]; });
    const Real upto = count(id, id_weight, [&](Key key) { return key <= ood[j]; });
    const Real positives = count(ood, ood_weight, [&](Key key) { return key >= ood[j]; });
    found.auroc += ood_weight[j] * (below + upto) / (2 * num_id * num_ood);
    if (ood_weight[j] > 0) found.aupr_ood += ood_weight[j] * positives / (positives + num_id - below) / num_ood;
    found.error = std::min(found.error, ((num_id - below) / num_id + 1 - positives / num_ood) / 2);
  }
  for (size_t i = 0; i < id.size(); ++i) {
    const Real own = count(id, id_weight, [&](Key key) { return key <= id[i]; });
    const Real other = count(ood, ood_weight, [&](Key key) { return key <= id[i]; });
    if (id_weight[i] > 0) found.aupr_id += id_weight[i] * own / (own + other) / num_id;
  }
  return found;
}

void expect_statistics(const RankSums& sums, int64_t num_id, int64_t num_ood, const Expected& want) {
  double areas[kRates];
  write_areas(sums, num_id, num_ood, areas);
  expect_near("auroc", areas[kAuroc], want.auroc);
  expect_near("aupr_ood", areas[kAuprOod], want.aupr_ood);
  expect_near("aupr_id", areas[kAuprId], want.aupr_id);
  expect_near("detection error", areas[kDetectionError], want.error);
}

// Calls body(begin, end, tile) for every tile of a pair.
template <typename Key, typename Body>
void for_tiles(const ScorePair<Key>& pair, const Body& body) {
  for (int64_t tile = 0; tile < num_tiles(pair.size()); ++tile) {
    body(merge_point(pair, tile * kTile), merge_point(pair, std::min((tile + 1) * kTile, pair.size())), tile);
  }
}

template <typename Key>
void test_pair(int64_t num_id, int64_t num_ood, int distinct) {
  std::mt19937 random(static_cast<unsigned>(num_id + 3 * num_ood + distinct));
  std::uniform_int_distribution<int> value(0, distinct - 1);
  std::vector<Key> id(num_id);
  std::vector<Key> ood(num_ood);
  for (Key& key : id) key = value(random) - distinct / 2;
  for (Key& key : ood) key = value(random) - distinct / 4;
  std::sort(id.begin(), id.end());
  std::sort(ood.begin(), ood.end());
  const ScorePair<Key> pair{id.data(), num_id, ood.data(), num_ood};
  expect(FASTOOD_CPU_DISPATCH(is_ascending<Key>)(id.data(), num_id), "ascending", 0, 1);

  TileAdder total;
  for_tiles(pair, [&](MergePoint begin, MergePoint end, int64_t tile) {
    total.add(tile, FASTOOD_CPU_DISPATCH(rank_tile<Key>)(pair, begin, end));
  });
  const std::vector<int32_t> id_ones(num_id, 1);
  const std::vector<int32_t> ood_ones(num_ood, 1);
  expect_statistics(total.sums(), num_id, num_ood, brute_force(id, id_ones, ood, ood_ones));

  std::vector<int32_t> ranks(3 * num_ood + 2 * num_id);
  int32_t* const r = ranks.data();
  const Ranks of{r, r + num_ood, r + 2 * num_ood, r + 3 * num_ood, r + 3 * num_ood + num_id};
  for_tiles(pair, [&](MergePoint begin, MergePoint end, int64_t) {
    FASTOOD_CPU_DISPATCH(write_ranks<Key>)(pair, begin, end, of);
  });
  std::vector<int32_t> id_weight(num_id);
  std::vector<int32_t> ood_weight(num_ood);
  const auto running = [&random](std::vector<int32_t>& weights) {
    std::vector<int32_t> sums(1);
    for (int32_t& weight : weights) {
      weight = std::uniform_int_distribution<int32_t>(0, 2)(random);
      sums.push_back(sums.back() + weight);
    }
    return sums;
  };
  const std::vector<int32_t> id_before = running(id_weight);
  const std::vector<int32_t> ood_before = running(ood_weight);
  if (id_before.back() > 0 && ood_before.back() > 0) {
    const RankSums sums = FASTOOD_CPU_DISPATCH(rank_weighted)(of, num_id, {id_before.back(), id_before.data()}, num_ood,
                                                              {ood_before.back(), ood_before.data()});
    expect_statistics(sums, id_before.back(), ood_before.back(), brute_force(id, id_weight, ood, ood_weight));
  }
}

// Fewer than any drop of the order in between is seen, at any place of a vector.
void test_descents() {
  std::vector<int32_t> keys(100);
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<int32_t>(i);
  for (size_t i = 1; i < keys.size(); ++i) {
    std::swap(keys[i - 1], keys[i]);
    expect(!FASTOOD_CPU_DISPATCH(is_ascending<int32_t>)(keys.data(), 100), "descent at", 0, static_cast<double>(i));
    std::swap(keys[i - 1], keys[i]);
  }
}

void test_required_counts() {
  for (int64_t count : {1, 2, 3, 19, 20, 100, 999, 12345, 1000000}) {
    for (int percent = 1; percent <= 100; ++percent) {
      const int64_t want = std::max<int64_t>(1, (percent * count + 99) / 100);
      const int64_t got = required_count(percent / 100.0, count);
      expect(got == want, "required count", static_cast<double>(got), static_cast<double>(want));
    }
  }
}

void test_random() {
  // Known answer of Random123 for Philox4x32-10 with counter and key zero, and all ones.
  const RandomPair zeros = philox({0, 0, 0}, 0);
  expect(zeros.first == 0xe169c58d6627e8d5u && zeros.second == 0x9b00dbd8bc57ac4cu, "philox of 0", 0, 0);
  const uint32_t ones = 0xffffffffu;
  const RandomPair known = philox({~uint64_t{0}, ones, ones}, ~uint64_t{0});
  expect(known.first == 0x41c83b0e408f276du && known.second == 0x6d5451fda20bc7c6u, "philox of ones", 0, 0);
  expect(scale_draw(~uint64_t{0}, 1000) == 999, "largest draw", 0, 999);
  expect(poisson_draw(0) == 0 && poisson_draw(~uint64_t{0}) == 20, "ends of Poisson", 0, 0);

  for (const int64_t count : {1, 2, 7, 1023, 1024, 1025, 5000}) {
    for (const uint32_t replicate : {0u, 9u}) {
      const RandomStream stream{42, replicate, 1};
      std::vector<int32_t> drawn(count, -1);
      FASTOOD_CPU_DISPATCH(draw_counts)(stream, Resampling::kMultinomial, count, count, drawn.data());
      std::vector<int32_t> want(count);
      std::vector<std::pair<uint64_t, int64_t>> numbers;
      for (int64_t j = 0; j < count; ++j) {
        const RandomPair pair = philox(stream, static_cast<uint64_t>(j / 2));
        numbers.emplace_back(j % 2 == 0 ? pair.first : pair.second, j);
        ++want[static_cast<int64_t>(numbers[j].first / 0x1p64L * count)];
      }
      expect(drawn == want, "multinomial counts", 0, static_cast<double>(count));
      std::sort(numbers.begin(), numbers.end());
      for (const int64_t size : {int64_t{0}, int64_t{1}, count / 3, count}) {
        std::fill(want.begin(), want.end(), 0);
        for (int64_t k = 0; k < size; ++k) want[numbers[k].second] = 1;
        FASTOOD_CPU_DISPATCH(draw_counts)(stream, Resampling::kSubset, count, size, drawn.data());
        expect(drawn == want, "subset", 0, static_cast<double>(size));
      }
    }
  }
}

// Ties of all 64 bits, which no test meets by chance: the first by position.
void test_subset_bound_with_ties() {
  const std::vector<uint64_t> numbers = {7, 3, 7, 1, 7, ~uint64_t{0}, 7};
  for (int64_t size = 0; size <= 7; ++size) {
    auto bound = SubsetBound::of(size);
    while (bound.is_open) {
      std::vector<int64_t> bins(SubsetBound::kBins);
      for (const uint64_t u : numbers) bins[bound.bin(u)] += bound.in_question(u) ? 1 : 0;
      bound.narrow(bins.data());
    }
    int64_t taken = 0;
    int64_t sevens = 0;
    for (const uint64_t u : numbers) {
      const bool in_question = bound.in_question(u);
      const bool takes = bound.is_smaller(u) || (in_question && bound.missing > 0);
      bound.missing -= in_question ? 1 : 0;
      taken += takes ? 1 : 0;
      sevens += takes && u == 7 ? 1 : 0;
    }
    expect(taken == size, "size of a subset with ties", static_cast<double>(taken), static_cast<double>(size));
    const int64_t want = std::clamp<int64_t>(size - 2, 0, 4);
    expect(sevens == want, "ties taken", static_cast<double>(sevens), static_cast<double>(want));
  }
}

}  // namespace

int main() {
  test_keys<float>();
  test_keys<double>();
  for (const auto& [num_id, num_ood] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {1, 7}, {127, 130}, {128, 128}, {1000, 1048}, {1000, 1049}, {3, 2100}, {2049, 2}, {1500, 1700}}) {
    for (const int distinct : {1, 2, 30, 1000000}) {
      test_pair<int32_t>(num_id, num_ood, distinct);
      test_pair<int64_t>(num_id, num_ood, distinct);
    }
  }
  test_descents();
  test_required_counts();
  test_random();
  test_subset_bound_with_ties();
  return testing::report(cpu_capability_name());
}
