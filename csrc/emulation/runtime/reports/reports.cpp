// ThreadSanitizer calls __tsan_on_report of the first library that has it, and its own library is the first of a Python
// process. This one is preloaded before it, and hands on.
extern "C" __attribute__((visibility("default"))) void (*emulation_on_report)() = nullptr;

extern "C" __attribute__((visibility("default"))) void __tsan_on_report(void*) {
  if (emulation_on_report != nullptr) emulation_on_report();
}
