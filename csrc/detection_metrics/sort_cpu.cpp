// torch.ops.fastood.sort_scores on the CPU: keys by counting sort.
//
// Bytes of a float32 score: the radix sort reads and writes its key three times, a third of the bits that vary at a time, at
// most 11; 16-bit scores are counted by value and written once. Digits that are the same in all keys are skipped.
#include <algorithm>
#include <array>
#include <bit>
#include <memory>

#include "../common/cpu_rows.h"
#include "../common/huge_pages.h"
#include "keys.h"
#include "op.h"

namespace fastood::detection_metrics {
namespace {

constexpr int kDigitBits = 11;
constexpr int64_t kBins = 1 << kDigitBits;
// Up to this size a comparison sort takes less time than clearing the bins.
constexpr int64_t kFewKeys = 400;
// Fewest keys of a chunk that is sorted by another thread: for fewer, the time for its bins exceeds the gain.
constexpr int64_t kChunk = 1 << 17;
constexpr int64_t kMaxChunks = 32;
// From here on 16-bit scores are counted by value.
constexpr int64_t kManyValues = 1 << 15;

using Bins = std::array<uint32_t, kBins>;

template <typename Key>
using Unsigned = std::make_unsigned_t<Key>;

template <typename Key>
constexpr int kDigits = (8 * static_cast<int>(sizeof(Key)) + kDigitBits - 1) / kDigitBits;

// Some bits of a key; the sign counts as if positive were larger.
template <typename Key>
struct Digit {
  int shift;
  uint32_t mask;

  uint32_t operator()(Key key) const {
    const Unsigned<Key> ordered = static_cast<Unsigned<Key>>(key) ^ (Unsigned<Key>{1} << (8 * sizeof(Key) - 1));
    return static_cast<uint32_t>(ordered >> shift) & mask;
  }
};

template <typename Key>
std::unique_ptr<Key[]> uninitialised(int64_t count) {
  return std::unique_ptr<Key[]>(new Key[static_cast<size_t>(count)]);
}

// Sorts `count` keys in `keys`, by way of `scratch` of the same size, in so many chunks side by side. `varying` has the bits
// that are not the same in all keys: higher bits need no digit, and digits of fewer bits scatter to fewer places.
template <typename Key>
class RadixSort {
 public:
  RadixSort(Key* keys, Key* scratch, int64_t count, int64_t num_chunks, Unsigned<Key> varying)
      : from_(keys),
        to_(scratch),
        count_(count),
        num_chunks_(num_chunks),
        digit_bits_((std::bit_width(varying) + kDigits<Key> - 1) / kDigits<Key>),
        bins_(std::max<size_t>(num_chunks, kDigits<Key>)) {}

  void run() {
    Key* const keys = from_;
    if (num_chunks_ == 1) {
      count_all();
    }
    for (int digit = 0; digit < kDigits<Key>; ++digit) {
      Bins* const bins = num_chunks_ == 1 ? &bins_[digit] : bins_.data();
      if (num_chunks_ > 1) {
        for_chunks([&](int64_t chunk, int64_t begin, int64_t end) { count(digit, begin, end, bins[chunk]); });
      }
      if (find_places(bins)) {
        for_chunks([&](int64_t chunk, int64_t begin, int64_t end) { scatter(digit, begin, end, bins[chunk]); });
        std::swap(from_, to_);
      }
    }
    if (from_ != keys) {
      for_chunks([&](int64_t, int64_t begin, int64_t end) { std::copy(from_ + begin, from_ + end, keys + begin); });
    }
  }

 private:
  template <typename Body>
  void for_chunks(const Body& body) {
    const int64_t size = (count_ + num_chunks_ - 1) / num_chunks_;
    const auto run_chunk = [&](int64_t chunk) {
      body(chunk, std::min(chunk * size, count_), std::min((chunk + 1) * size, count_));
    };
    if (num_chunks_ == 1) {
      return run_chunk(0);
    }
    torch::stable::parallel_for(0, num_chunks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        run_chunk(chunk);
      }
    });
  }

  int64_t num_bins() const { return int64_t{1} << digit_bits_; }

  // A local copy stays in registers, where a member would be read again after every store.
  Digit<Key> digit_of(int digit) const { return {digit * digit_bits_, static_cast<uint32_t>(num_bins() - 1)}; }

  // All digits in one pass, where a chunk keeps its keys: increments of one bin wait for each other, those of several
  // digits do not.
  void count_all() {
    const Key* const keys = from_;
    const int64_t count = count_;
    Bins* const bins = bins_.data();
    std::array<Digit<Key>, kDigits<Key>> digits;
    for (int digit = 0; digit < kDigits<Key>; ++digit) {
      digits[digit] = digit_of(digit);
    }
    for (int64_t i = 0; i < count; ++i) {
      FASTOOD_UNROLL
      for (int digit = 0; digit < kDigits<Key>; ++digit) {
        ++bins[digit][digits[digit](keys[i])];
      }
    }
  }

  void count(int digit, int64_t begin, int64_t end, Bins& bins) const {
    const Key* const keys = from_;
    const Digit<Key> digit_of_key = digit_of(digit);
    bins.fill(0);
    for (int64_t i = begin; i < end; ++i) {
      ++bins[digit_of_key(keys[i])];
    }
  }

  // Turns the counts of each digit into positions, by digit, then by chunk. False if all keys have the same digit.
  bool find_places(Bins* of_chunk) const {
    uint32_t place = 0;
    for (int64_t bin = 0; bin < num_bins(); ++bin) {
      const uint32_t before = place;
      for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
        place += std::exchange(of_chunk[chunk][bin], place);
      }
      if (place - before == count_) {
        return false;
      }
    }
    return true;
  }

  void scatter(int digit, int64_t begin, int64_t end, Bins& places) {
    const Key* const from = from_;
    Key* const to = to_;
    const Digit<Key> digit_of_key = digit_of(digit);
    for (int64_t i = begin; i < end; ++i) {
      const Key key = from[i];
      to[places[digit_of_key(key)]++] = key;
    }
  }

  Key* from_;
  Key* to_;
  int64_t count_;
  int64_t num_chunks_;
  int digit_bits_;
  std::vector<Bins> bins_;
};

template <typename Key>
void sort_keys(Key* keys, int64_t count, int64_t num_chunks, Unsigned<Key> varying) {
  if (count <= kFewKeys) {
    return std::sort(keys, keys + count);
  }
  const auto scratch = uninitialised<Key>(count);
  advise_huge_pages(scratch.get(), static_cast<size_t>(count) * sizeof(Key));
  RadixSort<Key>(keys, scratch.get(), count, num_chunks, varying).run();
}

// Every value of 16 bits, in the order of its key: NaN last.
template <typename Score>
const std::array<uint16_t, 1 << 16>& values_in_order() {
  static const auto values = [] {
    std::array<uint16_t, 1 << 16> order;
    for (uint32_t bits = 0; bits < order.size(); ++bits) {
      order[bits] = static_cast<uint16_t>(bits);
    }
    std::sort(order.begin(), order.end(),
              [](uint16_t a, uint16_t b) { return key_of(to_compute(Score{a})) < key_of(to_compute(Score{b})); });
    return order;
  }();
  return values;
}

template <typename Score>
void sort_values(const Score* scores, int64_t count, int32_t* keys) {
  std::vector<uint32_t> counts(1 << 16);
  for (int64_t i = 0; i < count; ++i) {
    ++counts[scores[i].bits];
  }
  for (const uint16_t bits : values_in_order<Score>()) {
    keys = std::fill_n(keys, counts[bits], key_of(to_compute(Score{bits})));
  }
}

// A row of `count` scores, followed by padding up to `columns`.
template <typename Score>
void sort_row(const Score* scores, int64_t count, int64_t columns, int64_t num_chunks, ScoreKey<Score>* keys) {
  std::fill(keys + count, keys + columns, kNanKey<ScoreKey<Score>>);
  if constexpr (sizeof(Score) == 2) {
    if (count >= kManyValues) {
      return sort_values(scores, count, keys);
    }
  }
  using Key = ScoreKey<Score>;
  const Key first = count == 0 ? Key{0} : key_of(to_compute(scores[0]));
  Key varying = 0;
  for (int64_t i = 0; i < count; ++i) {
    keys[i] = key_of(to_compute(scores[i]));
    varying |= keys[i] ^ first;
  }
  sort_keys(keys, count, num_chunks, static_cast<Unsigned<Key>>(varying));
}

Tensor sort_scores_cpu(const Tensor& scores, const std::optional<Tensor>& counts) {
  const SortInput in(scores, counts);
  const int64_t rows = in.num_rows();
  const int64_t columns = in.num_columns();
  for (int64_t row = 0; in.counts != nullptr && row < rows; ++row) {
    STD_TORCH_CHECK(in.counts[row] >= 0 && in.counts[row] <= columns, "counts must be in [0, ", columns, "], got ",
                    in.counts[row], " in row ", row);
  }
  const Tensor result = in.empty_keys();
  advise_huge_pages(result.mutable_data_ptr(), static_cast<size_t>(result.numel()) * result.element_size());
  dispatch_logits(scores, [&]<typename Score>() {
    const auto* first = static_cast<const Score*>(scores.const_data_ptr());
    auto* keys = static_cast<ScoreKey<Score>*>(result.mutable_data_ptr());
    const auto sort_rows = [&](int64_t begin, int64_t end, int64_t num_chunks) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t count = in.counts == nullptr ? columns : in.counts[row];
        sort_row(first + row * columns, count, columns, num_chunks, keys + row * columns);
      }
    };
    // Threads share a row where there are fewer rows than threads.
    const auto num_threads = static_cast<int64_t>(torch::stable::get_num_threads());
    if (rows < num_threads) {
      return sort_rows(0, rows, std::clamp<int64_t>(columns / kChunk, 1, std::min(num_threads, kMaxChunks)));
    }
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns));
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) { sort_rows(begin, end, 1); });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("sort_scores", TORCH_BOX(&sort_scores_cpu));
}

}  // namespace fastood::detection_metrics
