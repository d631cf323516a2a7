// Shared by the CPU ops over rows of logits: the element type as a template argument, and threads over rows.
#pragma once

#include <algorithm>

#include "logits.h"
#include "reduced_float.h"

namespace fastood {

// Rows that a CPU kernel may take as one vector.
constexpr int64_t kRowTile = 16;
// Below this many logits a second thread costs more than it saves.
constexpr int64_t kGrain = 1 << 16;

// Calls body.operator()<Logit>() with the element type of `logits`.
template <typename Body>
void dispatch_logits(const Tensor& logits, const Body& body) {
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return body.template operator()<float>();
    case ScalarType::Double:
      return body.template operator()<double>();
    case ScalarType::BFloat16:
      return body.template operator()<BFloat16>();
    case ScalarType::Half:
      return body.template operator()<Float16>();
    default:
      unsupported_logits(logits);
  }
}

// Calls body(begin, end) on ranges of rows, in parallel where it pays. Ranges begin at multiples of kRowTile, so that the
// same rows share a vector, and get the same bits, whatever the number of threads.
template <typename Body>
void parallel_rows(const LogitsInput& in, const Body& body) {
  const int64_t tiles = (in.num_rows + kRowTile - 1) / kRowTile;
  const int64_t grain = std::max<int64_t>(1, kGrain / (in.num_classes * kRowTile));
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    body(begin * kRowTile, std::min(end * kRowTile, in.num_rows));
  });
}

}  // namespace fastood
