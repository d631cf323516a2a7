// Fibers: stacks between which one CPU thread switches. One runs each CUDA thread of a block.
#pragma once

#include <cstddef>

#if defined(FASTOOD_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulation {

class Fiber {
 public:
  // Of the CPU thread that runs the scheduler, with the stack that it has.
  struct Main {};
  explicit Fiber(Main);
  // With a stack of its own, and a page below it that no one may touch.
  Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the fiber begin at `entry`, which never returns, when it is next switched to.
  void rewind(void (*entry)());

  // Goes on with `to`; returns when someone switches back to `from`. `ends`: no one will.
  static void switch_to(Fiber& from, Fiber& to, bool ends);

  // For ThreadSanitizer: orders what `given_up` has done before what `from` will do.
  static void join(Fiber& from, Fiber& given_up);

  // First of all on a fiber that has just begun; `from` is the main one.
  static void begin(Fiber& from);

 private:
  char* stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_ = nullptr;        // ThreadSanitizer's
#if defined(FASTOOD_EMULATION_UCONTEXT)
  ucontext_t context_;
#else
  void* top_ = nullptr;  // where it stopped
#endif
};

}  // namespace emulation
