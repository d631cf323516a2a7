// torch.ops.fastood.augment_images on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/huge_pages.h"
#include "cpu.h"
#include "op.h"

namespace fastood::image_augment {
namespace {

// Below this many pixels a second thread costs more than it saves.
constexpr int64_t kPixelGrain = 1 << 16;

void check_range(const int64_t* numbers, int64_t count, const char* name, int64_t largest) {
  for (int64_t b = 0; b < count; ++b) {
    STD_TORCH_CHECK(numbers[b] >= 0 && numbers[b] <= largest, name, " must be in [0, ", largest, "], got ", numbers[b]);
  }
}

template <typename Out>
void augment_batch(const AugmentParams& p, void* out) {
  const int64_t grain = std::max<int64_t>(1, kPixelGrain / std::max<int64_t>(1, p.image_size()));
  torch::stable::parallel_for(0, p.batch, grain, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> scratch(static_cast<size_t>(augment_scratch_size(p)));
    FASTOOD_CPU_DISPATCH(augment_images<Out>)(p, begin, end, scratch.data(), static_cast<Out*>(out));
  });
}

Tensor augment_images_cpu(const Tensor& images, const Tensor& index, const Tensor& rows, const Tensor& columns,
                          const Tensor& flip, int64_t padding, std::vector<double> mean, std::vector<double> std,
                          ScalarType dtype, bool channels_last) {
  const AugmentImagesInput in(images, index, rows, columns, flip, padding, mean, std, dtype, channels_last);
  const AugmentParams& p = in.params;
  check_range(p.index, p.batch, "index", p.num_images - 1);
  check_range(p.rows, p.batch, "rows", 2 * padding);
  check_range(p.columns, p.batch, "columns", 2 * padding);
  const Tensor result = in.empty_batch();
  void* const out = result.mutable_data_ptr();
  const int64_t count = p.batch * p.image_size();
  if (count == 0) {
    return result;
  }
  if (dtype == ScalarType::Float) {
    advise_huge_pages(out, static_cast<size_t>(count) * sizeof(float));
    augment_batch<float>(p, out);
  } else {
    advise_huge_pages(out, static_cast<size_t>(count) * sizeof(uint16_t));
    dtype == ScalarType::BFloat16 ? augment_batch<BFloat16>(p, out) : augment_batch<Float16>(p, out);
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("augment_images", TORCH_BOX(&augment_images_cpu));
}

}  // namespace fastood::image_augment
