// Included before every op_cuda.cpp and the schemas in an emulated build: the ops become those of the library
// fastood_emulated under the CPU's key, on the emulation's stream and allocator. The sources stay as they are.
#pragma once

#include <dlfcn.h>

// Before the headers of torch, which declare and call these two under the names that the macros give them.
#define aoti_torch_call_dispatcher emulation_call_dispatcher_2_8
#define torch_call_dispatcher emulation_call_dispatcher

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#undef aoti_torch_call_dispatcher
#undef torch_call_dispatcher

#include "../include/emulation/grid_cap.h"
#include "../runtime/stream.h"

namespace emulation {

// The boxed function of an op, with its stream from the first launch to the end of the last.
template <void (*kBoxed)(StableIValue*, uint64_t, uint64_t)>
void run_op(StableIValue* stack, uint64_t num_arguments, uint64_t num_outputs) {
  Op op;
  kBoxed(stack, num_arguments, num_outputs);
  op.finish();
}

// For dlsym: the function by which torch hands out its current stream.
void* find_symbol(void* library, const char* name);

}  // namespace emulation

namespace torch::stable::accelerator {

struct EmulatedDeviceGuard : emulation::Guard {
  explicit EmulatedDeviceGuard(DeviceIndex) {}
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
