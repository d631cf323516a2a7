// The stream of an op: a queue that runs later.
//
// On a GPU a launch returns before the kernel runs. Here a launch is queued, and the queue runs when the host waits, or
// when the op has returned, and not earlier: a host that reads a kernel's result without waiting reads poison. Memory
// that the op frees is freed in the order of the queue: kernels queued before still have it, kernels queued after do
// not. Memory that an op allocates is filled with poison_byte().
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "../include/cuda_runtime_api.h"
#include "../include/emulation/launch.h"

namespace emulation {

// An op that runs: from construction to the end of finish(), other CPU threads wait. Ops nest.
class Op {
 public:
  Op();
  // Runs what is queued; throws the errors of kernels, and an error if no call has read that of a launch.
  void finish();
  // Without finish(), as when the op throws, drops the queue.
  ~Op();
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

 private:
  bool finished_ = false;
};

// Index of the only device: that of tensors on the CPU, which is no number that code could assume.
constexpr int kDevice = -1;
// Throws std::runtime_error if `what` is asked for with the index of another device.
void check_device(int device, const char* what);

// The scope in which the device of the op is the current one: a launch outside of it is an error.
class Guard {
 public:
  explicit Guard(int device);
  ~Guard();
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
};

// The stream on which the op has to queue its work.
cudaStream_t current_stream();

// Queues work; `what` and `place` name it in messages.
void enqueue(const char* what, const Place& place, std::function<void()> work);
// The work that runs, or null.
struct Queued {
  const char* what;
  Place place;
};
const Queued* running_work();
// Throws std::runtime_error if `what`, queued at `place`, is on another stream than the op's, or outside of its device.
void check_stream(cudaStream_t stream, const char* what, const Place& place);
// Runs the queue now, before a function of torch or for a host that waits.
void run_queue();
// Counts a wait of the host, then runs the queue; an error while a graph is captured.
cudaError_t host_wait(const char* function, const Place& place);

// Of memory that nothing has written. 0xff is NaN and -1, which kernels also write, to mark what has no result; with even
// seeds it is 0x4b, a large number of every type, so that a result that is not written differs from one that is marked.
int poison_byte();
void* device_allocate(size_t bytes);
void device_free(void* memory);

void set_last_error(cudaError_t error, const std::string& text);

// Counters of the process, and settings of the tests: controls.cpp.
struct Counters {
  long launches = 0;
  long host_waits = 0;
  long reports = 0;
};
extern Counters counters;
extern long seed;
extern long max_blocks;

void begin_capture();
void end_capture();
void replay();
void end_graph();

}  // namespace emulation
