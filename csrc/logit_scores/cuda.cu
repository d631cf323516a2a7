// Detection scores on CUDA (math.h has the formulas): one kernel for all of a mask.
//
// Traffic: one read of the logits, N K sizeof(logit) bytes, which is the floor; a score adds a K-th of it. Further passes
// over a row find it in the level-1 cache, which four blocks share (56 to 64 registers a thread, ptxas for sm_90), else in
// the level-2 cache. Passes: two for all scores but kl_uniform (a third for rows near uniform) and gen (one
// more, and about fifteen to select the largest where gen_top asks for it).
// Threads: a sub-warp of 4..32 lanes per row up to 1024 classes, one block per row beyond. Rows that share a warp need not
// take the same passes: each lane adds up what its row needs, the reductions are common to all.
// No atomics and a fixed order of sums: results repeat bit for bit.
#include "../common/cuda_rows.cuh"
#include "cuda.h"

namespace fastood::logit_scores {
namespace {

template <typename T>
struct Shared {
  T values[kThreads / 32];
  int counts[kThreads / 32];
};

// Calls body(v_k) for this lane's share of the row.
template <int kWidth, typename Logit, typename Body>
__device__ __forceinline__ void for_logits(const Logit* __restrict__ row, int64_t num_classes, const Body& body) {
  for (int64_t k = threadIdx.x % kWidth; k < num_classes; k += kWidth) {
    body(load(row + k));
  }
}

template <int kWidth, typename Logit, typename T = Compute<Logit>>
__device__ __forceinline__ TopTwo<T> top_two(const Logit* __restrict__ row, int64_t num_classes, Shared<T>& shared) {
  TopTwo<T> own{-INFINITY, -INFINITY, 0};
  for_logits<kWidth>(row, num_classes, [&](T logit) { add_to_top(logit, own.largest, own.second, own.num_nan); });
  TopTwo<T> top;
  top.largest = Group<kWidth>::reduce(own.largest, Max(), shared.values);
  top.num_nan = Group<kWidth>::reduce(own.num_nan, Add(), shared.values);
  const bool has_largest = own.largest == top.largest;
  const int num_largest = Group<kWidth>::reduce(has_largest ? 1 : 0, Add(), shared.counts);
  const T second = Group<kWidth>::reduce(has_largest ? own.second : own.largest, Max(), shared.values);
  top.second = num_largest > 1 ? top.largest : second;
  return top;
}

template <int kWidth, typename Logit, typename T = Compute<Logit>>
__device__ __forceinline__ RowSoftmax<T> softmax(const Logit* __restrict__ row, int64_t num_classes,
                                                 const TopTwo<T>& top, Shared<T>& shared) {
  const T second = second_or_largest(top.largest, top.second);
  ScoreSums<T> sums{0, 0, 0};
  for_logits<kWidth>(row, num_classes,
                     [&](T logit) { add_to_sums(logit, second, sums.exponential, sums.product, sums.deviation); });
  sums.exponential = Group<kWidth>::reduce(sums.exponential, Add(), shared.values);
  sums.product = Group<kWidth>::reduce(sums.product, Add(), shared.values);
  sums.deviation = Group<kWidth>::reduce(sums.deviation, Add(), shared.values);
  return row_softmax(top, sums);
}

template <int kWidth, typename Logit, typename T = Compute<Logit>>
__device__ __forceinline__ T kl_uniform(const Logit* __restrict__ row, int64_t num_classes,
                                        const RowSoftmax<T>& softmax, const ClassCount<T>& K, Shared<T>& shared) {
  const bool near = near_uniform(softmax, K);
  const T anchor = mean_logit(softmax, K);
  RowSums<T> sums{0, 0, 0};
  if (near) {
    for_logits<kWidth>(row, num_classes, [&](T logit) { add_uniformity<false>(logit, anchor, anchor, sums); });
  }
  sums.exponential = Group<kWidth>::reduce(sums.exponential, Add(), shared.values);
  sums.deviation = Group<kWidth>::reduce(sums.deviation, Add(), shared.values);
  return near ? kl_uniform_score_near(anchor, softmax.largest, sums.exponential, sums.deviation, K)
              : kl_uniform_score(softmax, K);
}

// The gen_top logits closest to s; gen_top < K.
template <int kWidth, typename Logit, typename T = Compute<Logit>>
__device__ __forceinline__ Selection<T> select_largest(const Logit* __restrict__ row, int64_t num_classes,
                                                       const RowSoftmax<T>& softmax, T second, int64_t gen_top,
                                                       Shared<T>& shared) {
  Selection<T> selection{gen_top};
  const T bound = softmax.deviation / static_cast<T>(num_classes - gen_top);
  // Rows that are done wait for the others of the warp; a block has one row, so that all its warps agree.
  for (int step = 0; __any_sync(0xffffffffu, selection.active()); ++step) {
    const bool active = selection.active();
    const T pivot = selection.pivot(step, bound);
    int count = 0;
    if (active) {
      for_logits<kWidth>(row, num_classes, [&](T logit) { count += -below_second(logit, second) < pivot ? 1 : 0; });
    }
    count = Group<kWidth>::reduce(count, Add(), shared.counts);
    if (active) {
      selection.update(pivot, count);
    }
  }
  return selection;
}

template <int kWidth, typename Logit, typename T = Compute<Logit>>
__device__ __forceinline__ T gen(const Logit* __restrict__ row, int64_t num_classes, const TopTwo<T>& top,
                                 const RowSoftmax<T>& softmax, const ScoreSettings& settings, Shared<T>& shared) {
  const T gamma = static_cast<T>(settings.gen_gamma);
  const T second = second_or_largest(top.largest, top.second);
  const T base = gen_base(softmax);
  T limit = INFINITY;  // at which there are masked logits alone
  T remainder = 0;
  if (settings.gen_top > 0 && settings.gen_top < num_classes) {  // the same for all threads
    const Selection<T> selection = select_largest<kWidth>(row, num_classes, softmax, second, settings.gen_top, shared);
    limit = selection.limit();
    remainder = static_cast<T>(selection.remainder());
  }
  T sum = 0;
  for_logits<kWidth>(row, num_classes, [&](T logit) {
    const T x = below_second(logit, second);
    if (-x < limit) {
      sum += gen_term(x + base, gamma);
    }
  });
  sum = Group<kWidth>::reduce(sum, Add(), shared.values);
  return gen_score(softmax, sum + remainder * gen_term(base - limit, gamma), gamma);
}

// Four blocks to an SM leave 64 registers a thread; without a bound ptxas aims at 40 and spills.
template <typename Logit, int kWidth, typename T = Compute<Logit>>
__global__ void __launch_bounds__(kThreads, 4) scores_kernel(const __grid_constant__ LogitScoresParams p) {
  __shared__ Shared<T> shared;
  constexpr int kRowsPerBlock = kThreads / kWidth;
  const ScoreSettings& settings = p.settings;
  const ClassCount<T> K(p.num_classes);
  // Whole blocks walk the rows together: the shuffles need every lane, so that rows past the end repeat the last one.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock; first < p.num_rows;
       first += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const int64_t wanted = first + threadIdx.x / kWidth;
    const int64_t i = wanted < p.num_rows ? wanted : p.num_rows - 1;
    const bool writes = threadIdx.x % kWidth == 0 && wanted < p.num_rows;
    const Logit* row = static_cast<const Logit*>(p.logits) + i * p.row_stride;
    T* out = static_cast<T*>(p.scores) + i;
    const auto write = [&](T score) {
      if (writes) {
        *out = score;
      }
      out += p.num_rows;
    };

    // 1) what the scores are made of
    const TopTwo<T> top = top_two<kWidth>(row, p.num_classes, shared);
    if (!settings.wants_sums()) {
      write(max_logit_score(top));
      continue;
    }
    const RowSoftmax<T> main = softmax<kWidth>(row, p.num_classes, top, shared);

    // 2) the scores, in the order of the mask
    if (settings.wants(Score::kMsp)) write(msp_score(main));
    if (settings.wants(Score::kMaxLogit)) write(max_logit_score(top));
    if (settings.wants(Score::kEnergy)) write(energy_score(main));
    if (settings.wants(Score::kEntropy)) write(entropy_score(main));
    if (settings.wants(Score::kKlUniform)) write(kl_uniform<kWidth>(row, p.num_classes, main, K, shared));
    if (settings.wants(Score::kGen)) write(gen<kWidth>(row, p.num_classes, top, main, settings, shared));
    if (settings.wants(Score::kReject)) {
      const Logit* reject_row = row + p.num_classes;
      const TopTwo<T> reject_top = top_two<kWidth>(reject_row, settings.num_reject, shared);
      const RowSoftmax<T> reject = softmax<kWidth>(reject_row, settings.num_reject, reject_top, shared);
      write(reject_score(main, reject_top, reject));
    }
  }
}

}  // namespace

cudaError_t launch_logit_scores(const LogitScoresParams& params, cudaStream_t stream) {
  if (params.num_rows == 0) {
    return cudaSuccess;
  }
  return with_logit_type(params.type, [&]<typename Logit>() {
    with_group_width(params.num_classes, [&](auto width) {
      scores_kernel<Logit, width.value><<<num_blocks<width.value>(params.num_rows), kThreads, 0, stream>>>(params);
    });
    return cudaGetLastError();
  });
}

}  // namespace fastood::logit_scores
