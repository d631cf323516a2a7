// What the ops of an emulated build call instead of torch's own.
#include <torch/csrc/stable/c/shim.h>

#include <cstring>

#include "../runtime/stream.h"

extern "C" AOTITorchError aoti_torch_call_dispatcher(const char* name, const char* overload, StableIValue* stack);

namespace emulation {
namespace {

int32_t get_current_stream(int32_t, void** stream) {
  *stream = current_stream();
  return 0;
}

// Torch's functions run on the op's stream, after what is queued there. Allocation does not touch the device.
void run_before(const char* name) {
  if (std::strncmp(name, "aten::empty", 11) != 0 && std::strncmp(name, "aten::new_empty", 15) != 0) run_queue();
}

}  // namespace

void* find_symbol(void*, const char* name) {
  return std::strcmp(name, "aoti_torch_get_current_cuda_stream") == 0 ? reinterpret_cast<void*>(&get_current_stream)
                                                                      : nullptr;
}

}  // namespace emulation

extern "C" AOTITorchError emulation_call_dispatcher(const char* name, const char* overload, StableIValue* stack,
                                                    uint64_t abi_version) {
  emulation::run_before(name);
  return torch_call_dispatcher(name, overload, stack, abi_version);
}

extern "C" AOTITorchError emulation_call_dispatcher_2_8(const char* name, const char* overload, StableIValue* stack) {
  emulation::run_before(name);
  return aoti_torch_call_dispatcher(name, overload, stack);
}
