#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "sanitizers.h"

#if !defined(FASTOOD_EMULATION_UCONTEXT)
#if !defined(__x86_64__)
#error "the switch of stacks is written for x86-64: configure with -DFASTOOD_EMULATION_UCONTEXT=ON"
#endif
// Pushes the registers that a call must preserve, stores the top of this stack in *from, and returns on the stack `to`.
// swapcontext would also make a system call for the signal mask at each switch.
extern "C" __attribute__((visibility("hidden"))) void emulation_switch_stack(void** from, void* to);
asm(R"(
.text
.globl emulation_switch_stack
.hidden emulation_switch_stack
.type emulation_switch_stack,@function
emulation_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulation_switch_stack,.-emulation_switch_stack
)");
#endif

namespace emulation {
namespace {

// For a kernel's locals, which take several times as much memory with sanitizers.
constexpr size_t kStackBytes = 256 << 10;

}  // namespace

Fiber::Fiber(Main) {
  if (has_tsan()) tsan_ = __tsan_get_current_fiber();
}

Fiber::Fiber() : size_(kStackBytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* const memory =
      mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);
  stack_ = static_cast<char*>(memory) + page;
  bottom_ = stack_;
  if (has_tsan()) tsan_ = __tsan_create_fiber(0);
}

void Fiber::rewind(void (*entry)()) {
  fake_stack_ = nullptr;
  // A fiber that did not return has left AddressSanitizer's red zones on its stack.
  if (has_asan()) __asan_unpoison_memory_region(stack_, kStackBytes);
#if defined(FASTOOD_EMULATION_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  auto** top = reinterpret_cast<void**>(stack_ + kStackBytes);
  *--top = nullptr;  // the stack is a multiple of 16 at a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  top_ = top;
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to, bool ends) {
  if (has_tsan()) __tsan_switch_to_fiber(to.tsan_, 1);  // 1: without ordering accesses
  if (has_asan()) __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#if defined(FASTOOD_EMULATION_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  emulation_switch_stack(&from.top_, to.top_);
#endif
  if (has_asan()) __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
}

void Fiber::join(Fiber& from, Fiber& abandoned) {
  if (!has_tsan()) return;
  // 0: with ordering. ThreadSanitizer does not check that the stack is that of the fiber.
  __tsan_switch_to_fiber(abandoned.tsan_, 0);
  __tsan_switch_to_fiber(from.tsan_, 0);
}

void Fiber::begin(Fiber& from) {
  // AddressSanitizer reports the bounds of the main stack at the first switch away from it, which is here.
  if (has_asan()) __sanitizer_finish_switch_fiber(nullptr, &from.bottom_, &from.size_);
}

}  // namespace emulation
