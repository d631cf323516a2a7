// Fibers: stacks between which one CPU thread switches. One runs each CUDA thread of a block.
#pragma once

#include <cstddef>

#if defined(FASTOOD_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulation {

class Fiber {
 public:
  // The fiber of the CPU thread that runs the scheduler, on the stack of that thread.
  struct Main {};
  explicit Fiber(Main);
  // A fiber with a separate stack, above a guard page.
  Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the fiber begin at `entry`, which never returns, when it is next switched to.
  void rewind(void (*entry)());

  // Resumes `to`; returns at a switch back to `from`. `ends`: `from` is never resumed.
  static void switch_to(Fiber& from, Fiber& to, bool ends);

  // For ThreadSanitizer: orders the accesses of `abandoned` before the later ones of `from`.
  static void join(Fiber& from, Fiber& abandoned);

  // The first call on a fiber after rewind(); `from` is the scheduler's fiber.
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
