// torch.ops.fastood.background_pool_* on CUDA: checks, allocation, device, stream. No call synchronises with the device, so
// that values are not checked. A draw or find has the index -1 (and the importance NaN) where its uniform or target is out of
// range, where masses and stats are not those of omega and lead out of the pool, or where every weight is zero; importance
// is NaN for an index out of range; a step reports a bad batch in its status and changes nothing.
#include <algorithm>
#include <bit>
#include <tuple>

#include "../common/cuda_stream.h"
#include "cuda.h"
#include "op.h"

namespace fastood::background_pool {
namespace {

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

cudaStream_t stream_of(const Tensor& tensor) {
  return current_cuda_stream(tensor.get_device_index());
}

PoolParams params_of(const Tensor& omega, const Tensor* masses, const Tensor* stats, double epsilon) {
  check_omega(omega, epsilon);
  PoolParams pool{};
  pool.omega = static_cast<float*>(omega.mutable_data_ptr());
  pool.layout = pool_layout(omega.numel());
  pool.power = power_kind(epsilon);
  pool.epsilon = static_cast<float>(epsilon);
  if (masses != nullptr) {
    check_masses(*masses, omega);
    pool.masses = static_cast<double*>(masses->mutable_data_ptr());
  }
  if (stats != nullptr) {
    check_stats(*stats, omega);
    pool.stats = static_cast<double*>(stats->mutable_data_ptr());
  }
  return pool;
}

// Scratch as a tensor, of the caching allocator: it may be freed here while the kernels are still to run, on this stream.
Tensor scratch(const Tensor& like, int64_t bytes) {
  constexpr int64_t kDouble = sizeof(double);
  return torch::stable::new_empty(like, {(bytes + kDouble - 1) / kDouble}, ScalarType::Double);
}

// Bits of the numbers up to this one.
int bits_of(int64_t largest) {
  return largest <= 0 ? 0 : static_cast<int>(std::bit_width(static_cast<uint64_t>(largest)));
}

void fill_cuda(const Tensor& state, double value) {
  STD_TORCH_CHECK(state.is_contiguous(), "state must be contiguous");
  const DeviceGuard guard(state.get_device_index());
  if (state.scalar_type() == ScalarType::Double) {
    auto* data = static_cast<double*>(state.mutable_data_ptr());
    return check_launch(launch_pool_fill(data, state.numel(), value, stream_of(state)), "background_pool_fill");
  }
  check_dtype(state, "state", ScalarType::Float);
  auto* data = static_cast<float*>(state.mutable_data_ptr());
  check_launch(launch_pool_fill(data, state.numel(), static_cast<float>(value), stream_of(state)),
               "background_pool_fill");
}

Tensor sums_cuda(const Tensor& omega, double epsilon) {
  const PoolParams pool = params_of(omega, nullptr, nullptr, epsilon);
  const DeviceGuard guard(omega.get_device_index());
  const Tensor partials = scratch(omega, kPoolBlocks * sizeof(PoolTotals));
  const Tensor sums = torch::stable::new_empty(omega, {3}, ScalarType::Double);
  check_launch(launch_pool_sums(pool, static_cast<PoolTotals*>(partials.mutable_data_ptr()),
                                static_cast<double*>(sums.mutable_data_ptr()), stream_of(omega)),
               "background_pool_sums");
  return sums;
}

void build_cuda(const Tensor& omega, const Tensor& masses, const Tensor& stats, double epsilon) {
  const PoolParams pool = params_of(omega, &masses, &stats, epsilon);
  const DeviceGuard guard(omega.get_device_index());
  const Tensor partials = scratch(omega, kPoolBlocks * sizeof(PoolTotals));
  check_launch(launch_pool_build(pool, static_cast<PoolTotals*>(partials.mutable_data_ptr()), stream_of(omega)),
               "background_pool_build");
}

std::tuple<Tensor, Tensor> draw_cuda(const Tensor& omega, const Tensor& masses, const Tensor& stats,
                                     const Tensor& uniform, double epsilon) {
  const PoolParams pool = params_of(omega, &masses, &stats, epsilon);
  check_vector(uniform, "uniform", ScalarType::Double, omega);
  const DeviceGuard guard(omega.get_device_index());
  const Tensor index = torch::stable::new_empty(omega, {uniform.numel()}, ScalarType::Long);
  const Tensor importance = torch::stable::new_empty(omega, {uniform.numel()}, ScalarType::Float);
  check_launch(launch_pool_draw(pool, static_cast<const double*>(uniform.const_data_ptr()), uniform.numel(),
                                static_cast<int64_t*>(index.mutable_data_ptr()),
                                static_cast<float*>(importance.mutable_data_ptr()), stream_of(omega)),
               "background_pool_draw");
  return {index, importance};
}

Tensor find_cuda(const Tensor& omega, const Tensor& masses, const Tensor& stats, const Tensor& target, double epsilon) {
  const PoolParams pool = params_of(omega, &masses, &stats, epsilon);
  check_vector(target, "target", ScalarType::Double, omega);
  const DeviceGuard guard(omega.get_device_index());
  const Tensor index = torch::stable::new_empty(omega, {target.numel()}, ScalarType::Long);
  check_launch(launch_pool_find(pool, static_cast<const double*>(target.const_data_ptr()), target.numel(),
                                static_cast<int64_t*>(index.mutable_data_ptr()), stream_of(omega)),
               "background_pool_find");
  return index;
}

Tensor importance_cuda(const Tensor& omega, const Tensor& stats, const Tensor& index, double epsilon) {
  const PoolParams pool = params_of(omega, nullptr, &stats, epsilon);
  check_vector(index, "index", ScalarType::Long, omega);
  const DeviceGuard guard(omega.get_device_index());
  const Tensor importance = torch::stable::new_empty(omega, {index.numel()}, ScalarType::Double);
  check_launch(launch_pool_importance(pool, static_cast<const int64_t*>(index.const_data_ptr()), index.numel(),
                                      static_cast<double*>(importance.mutable_data_ptr()), stream_of(omega)),
               "background_pool_importance");
  return importance;
}

Tensor ascend_cuda(const Tensor& omega, const Tensor& velocity, const Tensor& masses, const Tensor& stats,
                   const Tensor& index, const Tensor& loss, const std::optional<Tensor>& shared, double epsilon,
                   double momentum, double lr, bool sparse) {
  PoolParams pool = params_of(omega, &masses, &stats, epsilon);
  check_vector(velocity, "velocity", ScalarType::Float, omega);
  check_size(velocity, "velocity", omega.numel());
  check_vector(index, "index", ScalarType::Long, omega);
  check_vector(loss, "loss", ScalarType::Double, omega);
  check_size(loss, "loss", index.numel());
  check_step(momentum, lr);
  pool.velocity = static_cast<float*>(velocity.mutable_data_ptr());
  const DeviceGuard guard(omega.get_device_index());
  const int64_t batch = index.numel();
  const Tensor status = torch::stable::new_empty(omega, {2}, ScalarType::Long);
  const Tensor plans = scratch(omega, 2 * sizeof(PoolPlan));
  const Tensor drawn = scratch(omega, batch * static_cast<int64_t>(sizeof(PoolDrawn)));
  const Tensor keys = scratch(omega, 2 * batch * static_cast<int64_t>(sizeof(int64_t)));
  const Tensor partials = scratch(omega, kPoolBlocks * sizeof(PoolTotals));
  PoolAscent ascent{};
  ascent.index = static_cast<const int64_t*>(index.const_data_ptr());
  ascent.loss = static_cast<const double*>(loss.const_data_ptr());
  ascent.batch = batch;
  ascent.epsilon = epsilon;
  ascent.momentum = momentum;
  ascent.lr = lr;
  ascent.sparse = sparse;
  ascent.status = static_cast<int64_t*>(status.mutable_data_ptr());
  ascent.plan = static_cast<PoolPlan*>(plans.mutable_data_ptr());
  ascent.rescale = ascent.plan + 1;
  ascent.drawn = static_cast<PoolDrawn*>(drawn.mutable_data_ptr());
  ascent.partials = static_cast<PoolTotals*>(partials.mutable_data_ptr());
  ascent.keys = static_cast<int64_t*>(keys.mutable_data_ptr());
  ascent.sorted_keys = ascent.keys + batch;
  ascent.position_bits = bits_of(batch - 1);
  ascent.index_bits = std::max(1, bits_of(omega.numel() - 1));
  STD_TORCH_CHECK(ascent.position_bits + ascent.index_bits < 64, "index must have fewer entries: with ", batch,
                  " of them in a pool of ", omega.numel(),
                  " examples, an example and its position do not fit into 63 bits; split the batch");
  if (shared.has_value()) {
    check_vector(*shared, "shared", ScalarType::Double, omega);
    check_size(*shared, "shared", 4);
    ascent.shared = static_cast<const double*>(shared->const_data_ptr());
  } else {
    STD_TORCH_CHECK(batch >= 1, "index must have at least one example");
  }
  check_launch(pool_ascend_work_bytes(ascent, &ascent.work_bytes), "background_pool_ascend");
  // At least one byte: CUB interprets null as a query for the size.
  const Tensor work = scratch(omega, static_cast<int64_t>(ascent.work_bytes) + 1);
  ascent.work = work.mutable_data_ptr();
  check_launch(launch_pool_ascend(pool, ascent, stream_of(omega)), "background_pool_ascend");
  return status;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("background_pool_fill", TORCH_BOX(&fill_cuda));
  m.impl("background_pool_sums", TORCH_BOX(&sums_cuda));
  m.impl("background_pool_build", TORCH_BOX(&build_cuda));
  m.impl("background_pool_draw", TORCH_BOX(&draw_cuda));
  m.impl("background_pool_find", TORCH_BOX(&find_cuda));
  m.impl("background_pool_importance", TORCH_BOX(&importance_cuda));
  m.impl("background_pool_ascend", TORCH_BOX(&ascend_cuda));
}

}  // namespace fastood::background_pool
