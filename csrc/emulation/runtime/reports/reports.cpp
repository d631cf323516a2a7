// ThreadSanitizer calls the __tsan_on_report of the first library that defines it, which in a Python process is
// ThreadSanitizer's own. This library is preloaded before it, and forwards the call.
extern "C" __attribute__((visibility("default"))) void (*emulation_on_report)() = nullptr;

extern "C" __attribute__((visibility("default"))) void __tsan_on_report(void*) {
  if (emulation_on_report != nullptr) emulation_on_report();
}
