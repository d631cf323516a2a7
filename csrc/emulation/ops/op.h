// Included before every op_cuda.cpp and the schemas in an emulated build: the ops become those of the library
// fastood_emulated under the CPU's key, on the emulation's stream and allocator. The sources stay as they are.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/c/shim.h>

namespace emulation {

// Torch's functions run on the op's stream, after what is queued there: ops/op.cpp.
void before_torch();
void after_torch();

template <auto kFunction, typename... Args>
auto on_stream(Args... args) {
  before_torch();
  const auto error = kFunction(args...);
  after_torch();
  return error;
}

// Functions that torch calls by name. Those that only allocate do not run the queue.
AOTITorchError call_dispatcher(const char* name, const char* overload, StableIValue* stack, uint64_t abi_version);
AOTITorchError call_dispatcher_2_8(const char* name, const char* overload, StableIValue* stack);

}  // namespace emulation

// The inline functions of the headers below call these. A function of torch that an op begins to call, and that does
// not go through a dispatcher call, needs a line here: without one it would run before the kernels that are queued.
#define torch_call_dispatcher emulation::call_dispatcher
#define aoti_torch_call_dispatcher emulation::call_dispatcher_2_8
#define aoti_torch_aten_amax emulation::on_stream<&::aoti_torch_aten_amax>
#define aoti_torch_aten_fill__Scalar emulation::on_stream<&::aoti_torch_aten_fill__Scalar>
#define aoti_torch_aten_full emulation::on_stream<&::aoti_torch_aten_full>
#define aoti_torch_aten_new_zeros emulation::on_stream<&::aoti_torch_aten_new_zeros>
#define aoti_torch_aten_pad emulation::on_stream<&::aoti_torch_aten_pad>
#define aoti_torch_aten_subtract_Tensor emulation::on_stream<&::aoti_torch_aten_subtract_Tensor>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../include/emulation/grid_cap.h"
#include "../runtime/stream.h"

namespace emulation {

// The boxed function of an op, which returns when all work that it has queued is done.
template <void (*kBoxed)(StableIValue*, uint64_t, uint64_t)>
void run_op(StableIValue* stack, uint64_t num_arguments, uint64_t num_outputs) {
  Op op;
  kBoxed(stack, num_arguments, num_outputs);
  op.finish();
}

// Replaces dlsym, for the function that returns torch's current stream.
void* find_symbol(void* library, const char* name);

}  // namespace emulation

namespace torch::stable::accelerator {

struct EmulatedDeviceGuard : emulation::Guard {
  explicit EmulatedDeviceGuard(DeviceIndex index) : Guard(index) {}
};

}  // namespace torch::stable::accelerator

#define DeviceGuard EmulatedDeviceGuard

#define dlsym emulation::find_symbol

#undef TORCH_BOX
#define TORCH_BOX(func) \
  (&emulation::run_op<  \
      torch::stable::detail::boxer<std::remove_pointer_t<std::remove_reference_t<decltype(func)>>, (func)>::boxed_fn>)

// Registrations for another key than CUDA do not compile.
#define FASTOOD_EMULATED_KEY_CUDA CPU
#define FASTOOD_EMULATED_IMPL(ns, k, m) _STABLE_TORCH_LIBRARY_IMPL(ns, k, m, C10_UID)
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) FASTOOD_EMULATED_IMPL(ns##_emulated, FASTOOD_EMULATED_KEY_##k, m)

#define FASTOOD_EMULATED_LIBRARY(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(ns, m)
#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(ns, m) FASTOOD_EMULATED_LIBRARY(ns##_emulated, m)
