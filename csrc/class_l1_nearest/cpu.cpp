// The nearest key of a class on the CPU. Compiled once per instruction set: see common/cpu_capability.h.
//
// Operations of M queries, N keys, K classes and d features: M N/K d times a subtraction, an absolute value and an
// addition; processors do two vector additions or subtractions per cycle. Bytes: every key of a class that has queries,
// once per kGroupQueries of them. Arithmetic takes longer than loading a key only if about a dozen queries use it.
//
// A tile of kTileQueries x kTileKeys pairs keeps its sums in registers, a vector for each. Within a block of features lane l
// of a pair's vector sums features l, l + lanes, …; the lanes are then added pairwise, and blocks in float64. The order does
// not depend on the tile, so that the distance of a pair does not depend on other rows.
#include "cpu.h"

#include <type_traits>
#include <utility>

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

namespace fastood::class_l1_nearest::FASTOOD_CPU_CAPABILITY {
namespace {

// Sums of a tile, with the vectors that are added to them, fill the registers.
#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
constexpr int kTileKeys = 4;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
constexpr int kTileKeys = 2;
#else
constexpr int64_t kVectorBytes = 16;
constexpr int kTileKeys = 2;
#endif
constexpr int kTileQueries = 4;

// Features per block, which are summed in the type of the queries; keys of fewer bits are converted block by block.
// After each block a tile is abandoned if none of its pairs can be the nearest. Checking twice as often was a tenth
// slower for keys at similar distances, and a tenth faster if the nearest key was three times nearer than most.
constexpr int64_t kFeatureBlock = 512;

template <typename T>
constexpr int kVectorLanes = static_cast<int>(kVectorBytes / static_cast<int64_t>(sizeof(T)));

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <typename T>
FASTOOD_HD Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}

// The first `count` lanes; zeros in the others, which do not change a distance.
template <typename T>
FASTOOD_HD Vector<T> load_some(const T* from, int64_t count) {
  alignas(kVectorBytes) T lanes[kVectorLanes<T>] = {};
  for (int64_t lane = 0; lane < count; ++lane) {
    lanes[lane] = from[lane];
  }
  return load(lanes);
}

template <typename T>
FASTOOD_HD Vector<T> absolute_difference(Vector<T> a, Vector<T> b) {
  typedef Bits<T> BitVector __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  const Bits<T> magnitude = sizeof(T) == 8 ? static_cast<Bits<T>>(INT64_MAX) : static_cast<Bits<T>>(INT32_MAX);
  return reinterpret_cast<Vector<T>>(reinterpret_cast<BitVector>(a - b) & magnitude);
}

// Sums of neighbouring lanes, of a and then of b.
template <typename T, int... kLane>
FASTOOD_HD Vector<T> add_neighbours(Vector<T> a, Vector<T> b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, 2 * kLane...) + __builtin_shufflevector(a, b, 2 * kLane + 1 ...);
}

// sums[l] <- the sum of the lanes of vectors[l], as many as a vector has lanes.
template <typename T>
FASTOOD_HD void sum_lanes(Vector<T>* vectors, T* sums) {
  FASTOOD_UNROLL
  for (int count = kVectorLanes<T>; count > 1; count /= 2) {
    for (int i = 0; i < count / 2; ++i) {
      vectors[i] =
          add_neighbours<T>(vectors[2 * i], vectors[2 * i + 1], std::make_integer_sequence<int, kVectorLanes<T>>());
    }
  }
  *reinterpret_cast<Vector<T>*>(sums) = vectors[0];
}

// Rows of the next keys, to prefetch. Each tile of queries prefetches a part of them, one cache line at a time between
// its sums: all at once would exceed the loads that a core can have in flight. For scattered keys in memory this saves
// a third of the time.
template <typename Key>
struct Ahead {
  const Key* rows[kTileKeys];
  int count;
};

// sums [kQueries, kTileKeys] of |q - k| over `count` features.
template <int kQueries, typename T, typename Key>
FASTOOD_HD void tile_sums(const T* const* queries, const T* const* keys, int64_t count, const Ahead<Key>& ahead,
                          T* sums) {
  constexpr int kLanes = kVectorLanes<T>;
  constexpr int kPairs = kQueries * kTileKeys;
  constexpr int kPadded = (kPairs + kLanes - 1) / kLanes * kLanes;
  Vector<T> sum[kPadded] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int k = 0; k < ahead.count; ++k) {
      __builtin_prefetch(ahead.rows[k] + j);
    }
    Vector<T> key[kTileKeys];
    FASTOOD_UNROLL
    for (int k = 0; k < kTileKeys; ++k) {
      key[k] = load(keys[k] + j);
    }
    FASTOOD_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      const Vector<T> query = load(queries[q] + j);
      FASTOOD_UNROLL
      for (int k = 0; k < kTileKeys; ++k) {
        sum[q * kTileKeys + k] += absolute_difference<T>(query, key[k]);
      }
    }
  }
  if (j < count) {
    Vector<T> key[kTileKeys];
    FASTOOD_UNROLL
    for (int k = 0; k < kTileKeys; ++k) {
      key[k] = load_some(keys[k] + j, count - j);
    }
    FASTOOD_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      const Vector<T> query = load_some(queries[q] + j, count - j);
      FASTOOD_UNROLL
      for (int k = 0; k < kTileKeys; ++k) {
        sum[q * kTileKeys + k] += absolute_difference<T>(query, key[k]);
      }
    }
  }
  FASTOOD_UNROLL
  for (int first = 0; first < kPadded; first += kLanes) {
    sum_lanes<T>(sum + first, sums + first);
  }
}

// Rows of keys compared together; past the end the last one repeats, which never beats itself.
template <typename Key>
struct KeyTile {
  const Key* rows[kTileKeys];

  FASTOOD_HD KeyTile(const NearestGroup<Key>& group, int64_t position) {
    for (int k = 0; k < kTileKeys; ++k) {
      const int64_t at = position + k < group.end ? position + k : group.end - 1;
      rows[k] = group.keys + group.key_indices[at] * group.key_stride;
    }
  }
};

// Columns of a tile of keys in the type of the queries: in place, or converted.
template <typename Key, typename T = Compute<Key>>
struct KeyColumns {
  const T* rows[kTileKeys];
  T converted[kTileKeys][kFeatureBlock];

  FASTOOD_HD void take(const KeyTile<Key>& tile, int64_t first, int64_t count) {
    for (int k = 0; k < kTileKeys; ++k) {
      const Key* const from = tile.rows[k] + first;
      for (int64_t j = 0; j < count; ++j) {
        converted[k][j] = to_compute(from[j]);
      }
      rows[k] = converted[k];
    }
  }
};

template <typename T>
struct KeyColumns<T, T> {
  const T* rows[kTileKeys];

  FASTOOD_HD void take(const KeyTile<T>& tile, int64_t first, int64_t) {
    for (int k = 0; k < kTileKeys; ++k) {
      rows[k] = tile.rows[k] + first;
    }
  }
};

// A block of features of a tile of keys.
template <typename T>
struct KeyBlock {
  const T* const* keys;
  int64_t first;
  int64_t count;
};

// Adds a block of features to the totals of a tile, unless each is already too large to win.
template <int kQueries, typename T, typename Key>
FASTOOD_HD void add_block(const T* const* queries, const KeyBlock<T>& block, const Ahead<Key>& ahead,
                          const Nearest<T>* nearest, double* totals) {
  constexpr int kLanes = kVectorLanes<T>;
  constexpr int kPairs = kQueries * kTileKeys;
  bool wanted = block.first == 0;
  for (int i = 0; i < kPairs && !wanted; ++i) {
    wanted = !(totals[i] >= static_cast<double>(nearest[i / kTileKeys].distance));
  }
  if (!wanted) {
    return;
  }
  const T* rows[kQueries];
  for (int q = 0; q < kQueries; ++q) {
    rows[q] = queries[q] + block.first;
  }
  T sums[(kPairs + kLanes - 1) / kLanes * kLanes];
  tile_sums<kQueries>(rows, block.keys, block.count, ahead, sums);
  for (int i = 0; i < kPairs; ++i) {
    totals[i] += static_cast<double>(sums[i]);
  }
}

template <typename T, typename... Rest>
FASTOOD_HD void add_block(int64_t num_queries, const T* const* queries, const KeyBlock<T>& block, const Rest&... rest) {
  switch (num_queries) {
    case 1:
      return add_block<1>(queries, block, rest...);
    case 2:
      return add_block<2>(queries, block, rest...);
    case 3:
      return add_block<3>(queries, block, rest...);
    default:
      return add_block<kTileQueries>(queries, block, rest...);
  }
}

}  // namespace

template <typename Key>
void class_l1_nearest(const NearestGroup<Key>& group, Nearest<Compute<Key>>* nearest) {
  using T = Compute<Key>;
  const T* queries[kGroupQueries];
  for (int64_t q = 0; q < group.num_queries; ++q) {
    queries[q] = group.queries + group.query_indices[q] * group.dim;
  }
  KeyColumns<Key> columns;
  double totals[kGroupQueries * kTileKeys];
  for (int64_t position = group.begin; position < group.end; position += kTileKeys) {
    const KeyTile<Key> tile(group, position);
    const KeyTile<Key> next_tile(group, position + kTileKeys);
    for (int64_t i = 0; i < group.num_queries * kTileKeys; ++i) {
      totals[i] = 0;
    }
    for (int64_t first = 0; first < group.dim; first += kFeatureBlock) {
      const int64_t rest = group.dim - first;
      const KeyBlock<T> block{columns.rows, first, rest < kFeatureBlock ? rest : kFeatureBlock};
      columns.take(tile, first, block.count);
      int asked = 0;
      for (int64_t q = 0; q < group.num_queries; q += kTileQueries) {
        const int64_t done = q + kTileQueries < group.num_queries ? q + kTileQueries : group.num_queries;
        Ahead<Key> ahead{{}, 0};
        for (; asked < kTileKeys * done / group.num_queries; ++asked) {
          ahead.rows[ahead.count++] =
              rest > kFeatureBlock ? tile.rows[asked] + first + kFeatureBlock : next_tile.rows[asked];
        }
        add_block(group.num_queries - q, queries + q, block, ahead, nearest + q, totals + q * kTileKeys);
      }
    }
    for (int64_t q = 0; q < group.num_queries; ++q) {
      for (int k = 0; k < kTileKeys; ++k) {
        nearest[q].offer(static_cast<T>(totals[q * kTileKeys + k]), position + k);
      }
    }
  }
}

#define FASTOOD_INSTANTIATE(Key) template void class_l1_nearest<Key>(const NearestGroup<Key>&, Nearest<Compute<Key>>*);
FASTOOD_INSTANTIATE(float)
FASTOOD_INSTANTIATE(double)
FASTOOD_INSTANTIATE(BFloat16)
FASTOOD_INSTANTIATE(Float16)
#undef FASTOOD_INSTANTIATE

}  // namespace fastood::class_l1_nearest::FASTOOD_CPU_CAPABILITY
