// Replacements of functions of torch that ops call, in an emulated build.
#include <torch/csrc/stable/c/shim.h>

#include <cstring>

#include "../runtime/sanitizers.h"
#include "../runtime/stream.h"

extern "C" AOTITorchError aoti_torch_call_dispatcher(const char* name, const char* overload, StableIValue* stack);

namespace emulation {
namespace {

int32_t get_current_stream(int32_t device, void** stream) {
  check_device(device, "the current stream");
  *stream = current_stream();
  return 0;
}

bool allocates(const char* name) {
  return std::strncmp(name, "aten::empty", 11) == 0 || std::strncmp(name, "aten::new_empty", 15) == 0;
}

}  // namespace

void* find_symbol(void*, const char* name) {
  return std::strcmp(name, "aoti_torch_get_current_cuda_stream") == 0 ? reinterpret_cast<void*>(&get_current_stream)
                                                                      : nullptr;
}

void before_torch() {
  run_queue();
}

// Writes by torch's functions are not recorded: from here on all memory counts as written.
void after_torch() {
  if (has_written()) emulation_forget_device();
}

AOTITorchError call_dispatcher(const char* name, const char* overload, StableIValue* stack, uint64_t abi_version) {
  if (allocates(name)) return torch_call_dispatcher(name, overload, stack, abi_version);
  before_torch();
  const AOTITorchError error = torch_call_dispatcher(name, overload, stack, abi_version);
  after_torch();
  return error;
}

AOTITorchError call_dispatcher_2_8(const char* name, const char* overload, StableIValue* stack) {
  if (allocates(name)) return aoti_torch_call_dispatcher(name, overload, stack);
  before_torch();
  const AOTITorchError error = aoti_torch_call_dispatcher(name, overload, stack);
  after_torch();
  return error;
}

}  // namespace emulation
