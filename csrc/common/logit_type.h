// The element types of logits, for launchers without torch headers.
#pragma once

namespace fastood {

enum class LogitType { kFloat64, kFloat32, kBFloat16, kFloat16 };

// The type that a row is computed in: float64 for float64 logits, float32 for all others.
template <typename Logit>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename Logit>
using Compute = typename ComputeOf<Logit>::type;

}  // namespace fastood
