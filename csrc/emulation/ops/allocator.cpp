// Torch's CPU allocator while the emulation is loaded: what ops allocate is poisoned, and freed in the stream's order.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include "../runtime/stream.h"

namespace emulation {
namespace {

class EmulatedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const memory = device_allocate(bytes);
    return {memory, memory, &device_free, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &device_free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

// Never destroyed: tensors may outlive every other object of the process.
[[maybe_unused]] const bool is_installed = [] {
  constexpr uint8_t kHighestPriority = 255;
  c10::SetCPUAllocator(new EmulatedAllocator, kHighestPriority);
  return true;
}();

}  // namespace
}  // namespace emulation
