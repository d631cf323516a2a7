// `planted NAME [SEED [MAX_BLOCKS]]` runs one planted bug as an op would. It prints the sum of the result or the error, with
// which it returns 1.
#include "planted.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>

extern "C" {
void emu_set_seed(long seed);
void emu_set_max_blocks(long blocks);
long emu_num_host_waits();
void emu_begin_capture();
void emu_end_capture();
int emu_replay();
void emu_end_graph();
}

namespace planted {

void say_host_read(float value) {
  std::printf("the host read %g after %ld waits\n", static_cast<double>(value), emu_num_host_waits());
}

namespace {

double sum_of(const Tensor& out) {
  double sum = 0;
  for (size_t i = 0; i < out.count; ++i) sum += out.data[i] * static_cast<double>(i + 1);
  return sum;
}

// Allocates inside an op, so that the tensor is poisoned.
std::unique_ptr<Tensor> empty() {
  emulation::Op op;
  auto out = std::make_unique<Tensor>(kThreads);
  op.finish();
  return out;
}

void run_as_op(const char* name, Tensor& out) {
  emulation::Op op;
  if (std::strcmp(name, "no_guard") == 0) {
    run("good", out.data);
  } else {
    const emulation::Guard guard(std::strcmp(name, "guard_of_another_device") == 0 ? 0 : emulation::kDevice);
    run(name, out.data);
  }
  op.finish();
}

// The sums before and after a replay show that a capture runs nothing and a replay all.
int capture(const char* name, Tensor& out) {
  std::memset(out.data, 0, 4 * out.count);
  emu_begin_capture();
  run_as_op(name, out);
  emu_end_capture();
  std::printf("sum %g before the replay\n", sum_of(out));
  const int failed = emu_replay();
  emu_end_graph();
  return failed;
}

}  // namespace
}  // namespace planted

int main(int argc, char** argv) {
  const char* const name = argv[1];
  emu_set_seed(argc > 2 ? std::atol(argv[2]) : 1);
  emu_set_max_blocks(argc > 3 ? std::atol(argv[3]) : 0);
  const std::unique_ptr<planted::Tensor> output = planted::empty();
  planted::Tensor& out = *output;
  try {
    if (std::strstr(name, "capture") != nullptr) {
      if (planted::capture(name, out) != 0) return 1;
    } else {
      planted::run_as_op(name, out);
    }
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
    return 1;
  }
  std::printf("sum %g\n", planted::sum_of(out));
  return 0;
}
