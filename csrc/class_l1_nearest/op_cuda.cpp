// torch.ops.fastood.class_l1_nearest on CUDA: checks, allocation, device, stream. No call synchronises with the device,
// so that the orders, which are results of a sort, are not checked as on the CPU: nothing is read or written by an order out
// of range. A row that query_order does not name, and a query whose nearest key is one out of range, gets NaN and -1.
#include <torch/csrc/stable/library.h>

#include "../common/cuda_op.h"
#include "cuda.h"
#include "op.h"

namespace fastood::class_l1_nearest {
namespace {

std::tuple<Tensor, Tensor> class_l1_nearest_cuda(const Tensor& query, const Tensor& query_classes,
                                                 const Tensor& query_order, const Tensor& keys,
                                                 const Tensor& key_classes, const Tensor& key_order) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const ClassL1NearestInput in(query, query_classes, query_order, keys, key_classes, key_order);
  const std::tuple<Tensor, Tensor> result = in.empty_results();
  const int64_t bytes = class_l1_nearest_scratch_bytes(in.num_queries, in.num_keys);
  const Tensor scratch = allocate(in.query, std::array<int64_t, 1>{bytes / 8}, ScalarType::Long);
  ClassL1NearestParams params{};
  params.type = logit_type(in.keys);
  params.queries = in.query.const_data_ptr();
  params.query_classes = integers(in.query_classes);
  params.query_order = integers(in.query_order);
  params.keys = in.keys.const_data_ptr();
  params.key_classes = integers(in.key_classes);
  params.key_order = integers(in.key_order);
  params.num_queries = in.num_queries;
  params.num_keys = in.num_keys;
  params.dim = in.dim;
  params.key_stride = in.key_stride;
  params.distance = std::get<0>(result).mutable_data_ptr();
  params.index = static_cast<int64_t*>(std::get<1>(result).mutable_data_ptr());
  params.partial = scratch.mutable_data_ptr();
  const cudaStream_t stream = current_cuda_stream(query.get_device_index());
  check_launch(launch_class_l1_nearest(params, stream), "class_l1_nearest");
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("class_l1_nearest", TORCH_BOX(&class_l1_nearest_cuda));
}

}  // namespace fastood::class_l1_nearest
