// Detection scores on the CPU. Compiled once per instruction set: see common/cpu_capability.h.
//
// Bytes: one read of the logits; further passes over a row find it in cache. Operations: one exponential per logit, about
// 25 vector instructions, for all scores but two: kl_uniform takes another where it meets a row near uniform, gen another
// two and a logarithm.
// Per row, the few logarithms of the scores themselves cost as much as the exponentials of 100 classes. Hence rows of few
// classes are taken kLanes at a time, one per lane of a vector, which also fills the vectors of a row of 10.
#include "cpu.h"

#ifndef FASTOOD_CPU_CAPABILITY
#error "FASTOOD_CPU_CAPABILITY names the namespace of this copy; CMakeLists.txt sets it"
#endif

#include "cpu_passes.h"

namespace fastood::logit_scores::FASTOOD_CPU_CAPABILITY {
namespace {

// The tile of 256 x 16 floats takes 16 KiB of the level-1 cache.
constexpr int64_t kMaxLogitsAcrossRows = 256;

// The softmax of one row or of kLanes rows, and the two largest logits that it starts from.
template <typename T>
struct SoftmaxLanes {
  TopLanes<T> top;
  Lanes<T> second;  // in every lane, for the passes
  Lanes<T> largest, gap, others, product, deviation, ratio, lambda;

  RowSoftmax<T> row(int64_t j) const {
    return {largest.at[j], gap.at[j], others.at[j], product.at[j], deviation.at[j], ratio.at[j], lambda.at[j]};
  }
};

// A result of one row, in lane 0, to every lane.
template <bool kOneRow, typename T>
void broadcast(Lanes<T>& lanes) {
  if constexpr (kOneRow) {
    lanes.fill(lanes.at[0]);
  }
}

template <typename Element, bool kOneRow, typename T = Compute<Element>>
void add_softmax(const Classes<Element, kOneRow>& classes, SoftmaxLanes<T>& softmax) {
  constexpr int64_t kRows = Classes<Element, kOneRow>::kRows;
  Lanes<T>& second = softmax.second;
  for (int64_t j = 0; j < kRows; ++j) {
    second.at[j] = second_or_largest(softmax.top.largest.at[j], softmax.top.second.at[j]);
  }
  broadcast<kOneRow>(second);
  const auto sums = sum_classes<3>(classes, [&second](const auto* blocks, int64_t num_blocks) {
    return exponential_sums(blocks, num_blocks, second);
  });
#pragma omp simd
  for (int64_t j = 0; j < kRows; ++j) {
    const RowSoftmax<T> row =
        row_softmax(softmax.top.row(j), ScoreSums<T>{sums[0].at[j], sums[1].at[j], sums[2].at[j]});
    softmax.largest.at[j] = row.largest;
    softmax.gap.at[j] = row.gap;
    softmax.others.at[j] = row.others;
    softmax.product.at[j] = row.product;
    softmax.deviation.at[j] = row.deviation;
    softmax.ratio.at[j] = row.ratio;
    softmax.lambda.at[j] = row.lambda;
  }
}

template <typename Element, bool kOneRow, typename T = Compute<Element>>
void kl_uniform_lanes(const Classes<Element, kOneRow>& classes, const SoftmaxLanes<T>& softmax, const ClassCount<T>& K,
                      Lanes<T>& out) {
  constexpr int64_t kRows = Classes<Element, kOneRow>::kRows;
  Lanes<T> anchor;
  bool any_near = false;
  for (int64_t j = 0; j < kRows; ++j) {
    const RowSoftmax<T> row = softmax.row(j);
    out.at[j] = kl_uniform_score(row, K);
    anchor.at[j] = mean_logit(row, K);
    any_near |= near_uniform(row, K);
  }
  if (!any_near) {
    return;
  }
  broadcast<kOneRow>(anchor);
  const auto sums = sum_classes<2>(classes, [&anchor](const auto* blocks, int64_t num_blocks) {
    return uniformity_sums(blocks, num_blocks, anchor);
  });
#pragma omp simd
  for (int64_t j = 0; j < kRows; ++j) {
    const RowSoftmax<T> row = softmax.row(j);
    const T near = kl_uniform_score_near(anchor.at[j], row.largest, sums[0].at[j], sums[1].at[j], K);
    out.at[j] = near_uniform(row, K) ? near : out.at[j];
  }
}

// Distances from s below which a logit is among the gen_top largest, and how many to take at that distance.
template <typename Element, bool kOneRow, typename T = Compute<Element>>
void select_largest(const Classes<Element, kOneRow>& classes, const SoftmaxLanes<T>& softmax, const ClassCount<T>& K,
                    int64_t gen_top, Lanes<T>& limit, Lanes<T>& remainder) {
  constexpr int64_t kRows = Classes<Element, kOneRow>::kRows;
  std::array<Selection<T>, kRows> selections;
  selections.fill({gen_top});
  const T num_left_out = K.count - static_cast<T>(gen_top);
  bool any_active = true;
  for (int step = 0; any_active; ++step) {
    for (int64_t j = 0; j < kRows; ++j) {
      limit.at[j] = selections[j].pivot(step, softmax.deviation.at[j] / num_left_out);
    }
    broadcast<kOneRow>(limit);
    const auto counts = sum_classes<1>(classes, [&](const auto* blocks, int64_t num_blocks) {
      return count_below(blocks, num_blocks, softmax.second, limit);
    });
    any_active = false;
    for (int64_t j = 0; j < kRows; ++j) {
      if (selections[j].active()) {
        selections[j].update(limit.at[j], counts[0].at[j]);
        any_active |= selections[j].active();
      }
    }
  }
  for (int64_t j = 0; j < kRows; ++j) {
    limit.at[j] = selections[j].limit();
    remainder.at[j] = selections[j].remainder();
  }
  broadcast<kOneRow>(limit);
}

template <typename Element, bool kOneRow, typename T = Compute<Element>>
void gen_lanes(const Classes<Element, kOneRow>& classes, const SoftmaxLanes<T>& softmax, const ClassCount<T>& K,
               const ScoreSettings& settings, Lanes<T>& out) {
  constexpr int64_t kRows = Classes<Element, kOneRow>::kRows;
  const T gamma = static_cast<T>(settings.gen_gamma);
  Lanes<T> base;
  Lanes<T> limit;
  Lanes<T> remainder;
  limit.fill(INFINITY);  // at which there are masked logits alone
  remainder.fill(0);
  for (int64_t j = 0; j < kRows; ++j) {
    base.at[j] = gen_base(softmax.row(j));
  }
  broadcast<kOneRow>(base);
  if (settings.gen_top > 0 && settings.gen_top < K.count) {
    select_largest(classes, softmax, K, settings.gen_top, limit, remainder);
  }
  const auto sum = sum_classes<1>(classes, [&](const auto* blocks, int64_t num_blocks) {
    return gen_sums(blocks, num_blocks, softmax.second, base, limit, gamma);
  });
#pragma omp simd
  for (int64_t j = 0; j < kRows; ++j) {
    const T of_ties = remainder.at[j] * gen_term(base.at[j] - limit.at[j], gamma);
    out.at[j] = gen_score(softmax.row(j), sum[0].at[j] + of_ties, gamma);
  }
}

// out[j] gets the j-th score of the mask. K counts the classes without reject classes.
template <typename Element, bool kOneRow, typename T = Compute<Element>>
void score_rows(const Classes<Element, kOneRow>& classes, const Classes<Element, kOneRow>& reject,
                const ClassCount<T>& K, const ScoreSettings& settings, Lanes<T>* out) {
  constexpr int64_t kRows = Classes<Element, kOneRow>::kRows;
  SoftmaxLanes<T> softmax;
  softmax.top = top_two(classes);
  if (settings.wants_sums()) {
    add_softmax(classes, softmax);
  }
  const auto write = [&](Score which, const auto& score_of) {
    if (settings.wants(which)) {
#pragma omp simd
      for (int64_t j = 0; j < kRows; ++j) {
        out->at[j] = score_of(softmax.row(j));
      }
      ++out;
    }
  };
  write(Score::kMsp, [](const RowSoftmax<T>& row) { return msp_score(row); });
  if (settings.wants(Score::kMaxLogit)) {
    for (int64_t j = 0; j < kRows; ++j) {
      out->at[j] = max_logit_score(softmax.top.row(j));
    }
    ++out;
  }
  write(Score::kEnergy, [](const RowSoftmax<T>& row) { return energy_score(row); });
  write(Score::kEntropy, [](const RowSoftmax<T>& row) { return entropy_score(row); });
  if (settings.wants(Score::kKlUniform)) {
    kl_uniform_lanes(classes, softmax, K, *out++);
  }
  if (settings.wants(Score::kGen)) {
    gen_lanes(classes, softmax, K, settings, *out++);
  }
  if (settings.wants(Score::kReject)) {
    SoftmaxLanes<T> rejected;
    rejected.top = top_two(reject);
    add_softmax(reject, rejected);
    for (int64_t j = 0; j < kRows; ++j) {
      out->at[j] = reject_score(softmax.row(j), rejected.top.row(j), rejected.row(j));
    }
  }
}

// Interleaves the two halves of kLanes x kLanes numbers: the eight bits of every index rotate by one.
template <typename T>
void interleave(const T* from, T* to) {
  constexpr int64_t kHalf = kLanes * kLanes / 2;
#pragma omp simd
  for (int64_t i = 0; i < kHalf; ++i) {
    to[2 * i] = from[i];
    to[2 * i + 1] = from[kHalf + i];
  }
}

// One class of each of kLanes rows to a block. Lanes past num_rows repeat the last row.
template <typename Logit, typename T = Compute<Logit>>
void load_tile(const ScoreRows<Logit>& rows, int64_t first, T* tile) {
  alignas(64) T a[kLanes * kLanes];
  alignas(64) T b[kLanes * kLanes];
  const Logit* row[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    row[lane] = rows.logits + std::min(first + lane, rows.num_rows - 1) * rows.row_stride;
  }
  int64_t k = 0;
  for (; k + kLanes <= rows.num_logits; k += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
#pragma omp simd
      for (int64_t j = 0; j < kLanes; ++j) {
        a[lane * kLanes + j] = to_compute(row[lane][k + j]);
      }
    }
    // Four rotations swap the bits of the row with those of the column: a third of the time of a store per number.
    interleave(a, b);
    interleave(b, a);
    interleave(a, b);
    interleave(b, tile + k * kLanes);
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    for (int64_t rest = k; rest < rows.num_logits; ++rest) {
      tile[rest * kLanes + lane] = to_compute(row[lane][rest]);
    }
  }
}

}  // namespace

template <typename Logit>
void logit_scores(const ScoreRows<Logit>& rows, const ScoreSettings& settings, Compute<Logit>* scores,
                  int64_t score_stride) {
  using T = Compute<Logit>;
  const int64_t num_classes = rows.num_logits - settings.num_reject;
  const ClassCount<T> K(num_classes);
  const int num_scores = settings.num_scores();
  const bool across_rows = rows.num_logits <= kMaxLogitsAcrossRows;
  Lanes<T> out[kNumScores];
  alignas(64) T tile[kMaxLogitsAcrossRows * kLanes];
  for (int64_t i = 0; i < rows.num_rows; i += across_rows ? kLanes : 1) {
    if (across_rows) {
      load_tile(rows, i, tile);
      const Classes<T, false> classes(tile, num_classes);
      const Classes<T, false> reject(tile + num_classes * kLanes, settings.num_reject);
      score_rows(classes, reject, K, settings, out);
    } else {
      const Logit* logits = rows.logits + i * rows.row_stride;
      const Classes<Logit, true> classes(logits, num_classes);
      const Classes<Logit, true> reject(logits + num_classes, settings.num_reject);
      score_rows(classes, reject, K, settings, out);
    }
    const int64_t count = across_rows ? std::min(kLanes, rows.num_rows - i) : 1;
    for (int line = 0; line < num_scores; ++line) {
      std::copy_n(out[line].at, count, scores + line * score_stride + i);
    }
  }
}

#define FASTOOD_INSTANTIATE(Logit) \
  template void logit_scores<Logit>(const ScoreRows<Logit>&, const ScoreSettings&, Compute<Logit>*, int64_t);
FASTOOD_INSTANTIATE(float)
FASTOOD_INSTANTIATE(double)
FASTOOD_INSTANTIATE(BFloat16)
FASTOOD_INSTANTIATE(Float16)
#undef FASTOOD_INSTANTIATE

}  // namespace fastood::logit_scores::FASTOOD_CPU_CAPABILITY
