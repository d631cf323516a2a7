// Shared by the CPU and CUDA ops of the nearest key of a class: checked arguments and allocated outputs.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <tuple>

#include "../common/allocate.h"
#include "../common/checks.h"

namespace fastood::class_l1_nearest {

struct ClassL1NearestInput {
  Tensor query;
  const Tensor& query_classes;
  const Tensor& query_order;
  Tensor keys;
  const Tensor& key_classes;
  const Tensor& key_order;
  int64_t num_queries;
  int64_t num_keys;
  int64_t dim;
  int64_t key_stride;

  ClassL1NearestInput(const Tensor& query_, const Tensor& query_classes_, const Tensor& query_order_,
                      const Tensor& keys_, const Tensor& key_classes_, const Tensor& key_order_)
      : query(query_),
        query_classes(query_classes_),
        query_order(query_order_),
        keys(keys_),
        key_classes(key_classes_),
        key_order(key_order_) {
    check_dim(query, "query", 2);
    check_dim(keys, "keys", 2);
    num_queries = query.size(0);
    num_keys = keys.size(0);
    dim = query.size(1);
    STD_TORCH_CHECK(dim >= 1, "query must have at least one feature");
    STD_TORCH_CHECK(keys.size(1) == dim, "keys must have ", dim, " features like query, got ", keys.size(1));
    const ScalarType type = keys.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::BFloat16 ||
                        type == ScalarType::Half,
                    "keys must be float64, float32, bfloat16 or float16, got ", torch::headeronly::toString(type));
    const ScalarType wanted = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    check_dtype(query, "query", wanted);
    check_same_device(keys, "keys", query);
    check_positions(query_classes, "query_classes", num_queries);
    check_positions(query_order, "query_order", num_queries);
    check_positions(key_classes, "key_classes", num_keys);
    check_positions(key_order, "key_order", num_keys);
    query = torch::stable::contiguous(query);
    // Rows may have any stride: keys are too large to copy.
    if (dim > 1 && keys.stride(1) != 1) {
      keys = torch::stable::contiguous(keys);
    }
    key_stride = keys.stride(0);
  }

  // distance [M] and index [M].
  std::tuple<Tensor, Tensor> empty_results() const {
    return {allocate(query, std::array<int64_t, 1>{num_queries}, query.scalar_type()),
            allocate(query, std::array<int64_t, 1>{num_queries}, ScalarType::Long)};
  }

 private:
  void check_positions(const Tensor& tensor, const char* name, int64_t size) const {
    check_dim(tensor, name, 1);
    check_size(tensor, name, size);
    check_dtype(tensor, name, ScalarType::Long);
    check_same_device(tensor, name, query);
    STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  }
};

inline const int64_t* integers(const Tensor& tensor) {
  return static_cast<const int64_t*>(tensor.const_data_ptr());
}

}  // namespace fastood::class_l1_nearest
