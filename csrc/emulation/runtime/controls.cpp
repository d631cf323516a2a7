// C functions with which tests control and query the emulation, by ctypes. README.md lists them.
#include <cstdio>
#include <exception>

#include "../include/emulation/grid_cap.h"
#include "../include/emulation/mutants.h"
#include "block.h"
#include "sanitizers.h"
#include "stream.h"

// reports/reports.cpp
extern "C" FASTOOD_WEAK void (*emulation_on_report)();

namespace emulation {

long seed = 1;
long max_blocks = 0;
int switched_off = 0;
bool skips_syncwarp = false;

void skip_next_syncwarp() {
  skips_syncwarp = true;
}

namespace {

// Reports of sanitizers show source lines; this adds who ran. In a report nothing may be allocated.
void name_thread() {
  if (block.running() >= 0) {
    std::fprintf(stderr, "emulated CUDA: %s (launched at %s:%u): block %u, thread %d\n", block.kernel(),
                 file_of(block.launched()), block.launched().line(), blockIdx.x, block.running());
  } else if (const Queued* work = running_work(); work != nullptr) {
    std::fprintf(stderr, "emulated CUDA: %s queued at %s:%u\n", work->what, file_of(work->place), work->place.line());
  }
}

void count_report() {
  ++counters.reports;
  name_thread();
}

[[maybe_unused]] const bool listens = [] {
  if (has_asan()) __asan_set_error_report_callback([](const char*) { name_thread(); });
  if (&emulation_on_report != nullptr) emulation_on_report = &count_report;
  return true;
}();

}  // namespace

long long cap_of_blocks() {
  return max_blocks == 0 ? 0x7fffffff : max_blocks;
}

}  // namespace emulation

#define FASTOOD_CONTROL extern "C" __attribute__((visibility("default")))

FASTOOD_CONTROL void emu_set_seed(long seed) {
  emulation::seed = seed;
}
FASTOOD_CONTROL void emu_set_max_blocks(long blocks) {
  emulation::max_blocks = blocks;
}
FASTOOD_CONTROL void emu_switch_off(int site) {
  emulation::switched_off = site;
}
// Reports of ThreadSanitizer; -1 if they are not counted, because reports/reports.cpp is not preloaded.
FASTOOD_CONTROL long emu_num_reports() {
  if (emulation::has_tsan() && &emulation_on_report == nullptr) return -1;
  return emulation::counters.reports;
}
FASTOOD_CONTROL long emu_num_launches() {
  return emulation::counters.launches;
}
FASTOOD_CONTROL long emu_num_host_waits() {
  return emulation::counters.host_waits;
}
FASTOOD_CONTROL void emu_begin_capture() {
  emulation::begin_capture();
}
FASTOOD_CONTROL void emu_end_capture() {
  emulation::end_capture();
}
// 0, or 1 where a kernel failed; the message goes to stderr.
FASTOOD_CONTROL int emu_replay() {
  try {
    emulation::replay();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
FASTOOD_CONTROL void emu_end_graph() {
  emulation::end_graph();
}
