// The Python module `fastood._C`. Schemas of the ops: schemas.cpp.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include "common/cpu_capability.h"

#if !FASTOOD_WITH_CUDA
namespace {

// Instead of the dispatcher's "Could not run ... with arguments from the 'CUDA' backend".
void no_cuda_kernels(StableIValue*, uint64_t, uint64_t) {
  STD_TORCH_CHECK(false, "the tensors are on a CUDA device, but this fastood was built without CUDA kernels (",
                  FASTOOD_CUDA_REASON, "): reinstall it with FASTOOD_CUDA=1, which needs nvcc");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CUDA, m) {
  m.impl("outlier_loss", &no_cuda_kernels);
  m.impl("_outlier_loss_backward", &no_cuda_kernels);
  m.impl("outlier_loss_value_and_grad", &no_cuda_kernels);
  m.impl("logit_scores", &no_cuda_kernels);
  m.impl("mahalanobis_logits", &no_cuda_kernels);
  m.impl("_mahalanobis_logits_backward", &no_cuda_kernels);
  m.impl("class_l1_nearest", &no_cuda_kernels);
  m.impl("background_pool_fill", &no_cuda_kernels);
  m.impl("background_pool_sums", &no_cuda_kernels);
  m.impl("background_pool_build", &no_cuda_kernels);
  m.impl("background_pool_draw", &no_cuda_kernels);
  m.impl("background_pool_find", &no_cuda_kernels);
  m.impl("background_pool_importance", &no_cuda_kernels);
  m.impl("background_pool_ascend", &no_cuda_kernels);
  m.impl("sort_scores", &no_cuda_kernels);
  m.impl("ranking_statistics", &no_cuda_kernels);
  m.impl("weighted_ranking_statistics", &no_cuda_kernels);
  m.impl("resampling_counts", &no_cuda_kernels);
  m.impl("augment_images", &no_cuda_kernels);
}
#endif

namespace {

namespace py = pybind11;

py::dict build_info() {
  py::dict info;
  info["version"] = FASTOOD_VERSION;
  info["cuda"] = static_cast<bool>(FASTOOD_WITH_CUDA);
  info["cuda_architectures"] = FASTOOD_CUDA_ARCHITECTURES;
  info["cuda_compiler"] = FASTOOD_CUDA_COMPILER;
  info["cuda_driver"] = FASTOOD_CUDA_DRIVER;
  info["cuda_reason"] = FASTOOD_CUDA_REASON;
  info["compiler"] = FASTOOD_CXX_COMPILER;
  info["target_torch"] = FASTOOD_TARGET_TORCH;
  info["cpu_capability"] = fastood::cpu_capability_name();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of fastood. Importing it registers torch.ops.fastood.";
  m.def("build_info", &build_info, "Return how this build was made: version, CUDA, compilers, torch.");
}
