#include "stream.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "block.h"
#include "sanitizers.h"

namespace emulation {
namespace {

// Ops of several CPU threads, such as autograd's, run one after another.
std::recursive_mutex mutex;
std::atomic<std::thread::id> owner;
int depth = 0;
int num_guards = 0;
struct Work {
  Queued queued;
  std::function<void()> run;
  void* freed = nullptr;  // instead of run: memory to release
};
std::deque<Work> pending;
const Work* running = nullptr;
char stream_object;

std::atomic<bool> is_capturing = false;
std::atomic<bool> has_graph = false;
std::vector<Work> graph;
std::vector<void*> memory_of_graph;

bool in_own_op() {
  return owner.load() == std::this_thread::get_id();
}

cudaError_t last_error = cudaSuccess;
std::string last_error_text;

void poison(void* memory) {
  const size_t bytes = malloc_usable_size(memory);
  if (has_tsan()) {
    fill_bytes(memory, poison_byte(), bytes);
  } else {
    std::memset(memory, poison_byte(), bytes);
  }
}

// Freed memory is poisoned first, so that a later read does not find the old values.
void release(void* memory) {
  if (has_written()) emulation_forget(memory);
  poison(memory);
  std::free(memory);
}

// The queued work does not run; queued releases of memory are carried out.
void drop_queue() {
  for (const Work& work : pending) {
    if (work.freed != nullptr) release(work.freed);
  }
  pending.clear();
}

}  // namespace

Counters counters;

Op::Op() {
  mutex.lock();
  if (depth++ == 0) owner = std::this_thread::get_id();
}

void Op::finish() {
  finished_ = true;
  if (depth > 1) return;
  if (is_capturing) {
    for (Work& work : pending) graph.push_back(std::move(work));
    pending.clear();
  } else {
    run_queue();
  }
  if (last_error != cudaSuccess) {
    last_error = cudaSuccess;
    throw std::runtime_error("emulated CUDA: no call read the error of a launch: " + last_error_text);
  }
}

Op::~Op() {
  if (depth == 1 && !finished_) {
    drop_queue();
    last_error = cudaSuccess;
  }
  if (--depth == 0) {
    owner = std::thread::id();
    // Torch may write to results from now on, which is not recorded.
    if (has_written()) emulation_forget_device();
  }
  mutex.unlock();
}

void check_device(int device, const char* what) {
  if (device != kDevice) {
    throw std::runtime_error("emulated CUDA: " + std::string(what) + " of device " + std::to_string(device) +
                             ", which is not the device of the tensors");
  }
}

int poison_byte() {
  return seed != 0 && seed % 2 == 0 ? 0x4b : 0xff;
}

Guard::Guard(int device) {
  check_device(device, "a DeviceGuard");
  ++num_guards;
}
Guard::~Guard() {
  --num_guards;
}

cudaStream_t current_stream() {
  return reinterpret_cast<cudaStream_t>(&stream_object);
}

void check_stream(cudaStream_t stream, const char* what, const Place& place) {
  if (stream != current_stream()) {
    throw std::runtime_error("emulated CUDA: " + std::string(what) + " at " + text_of(place) + " is queued on " +
                             (stream == nullptr ? "the default stream" : "another stream") +
                             " instead of the current stream of the op");
  }
  if (num_guards == 0) {
    throw std::runtime_error("emulated CUDA: " + std::string(what) + " at " + text_of(place) +
                             " is queued without a DeviceGuard for the device of the tensors");
  }
}

void enqueue(const char* what, const Place& place, std::function<void()> work) {
  pending.push_back({{what, place}, std::move(work)});
}

const Queued* running_work() {
  return running == nullptr ? nullptr : &running->queued;
}

void run_queue() {
  if (running != nullptr || is_capturing) return;
  try {
    while (!pending.empty()) {
      const Work work = std::move(pending.front());
      pending.pop_front();
      running = &work;
      if (work.freed != nullptr) {
        release(work.freed);
      } else {
        work.run();
      }
      running = nullptr;
    }
  } catch (...) {
    running = nullptr;
    drop_queue();
    throw;
  }
}

cudaError_t host_wait(const char* function, const Place& place) {
  ++counters.host_waits;
  if (is_capturing) {
    set_last_error(cudaErrorStreamCaptureUnsupported, std::string(function) + " at " + text_of(place));
    return cudaErrorStreamCaptureUnsupported;
  }
  run_queue();
  return cudaSuccess;
}

void* device_allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  // As torch aligns on a CPU. On a GPU it is 512, but no access needs more than this.
  constexpr size_t kAlignment = 64;
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, bytes) != 0) throw std::bad_alloc();
  if (in_own_op()) {
    poison(memory);
    if (has_written()) emulation_track(memory, bytes, true);
  }
  return memory;
}

void device_free(void* memory) {
  if (memory == nullptr) return;
  if (has_graph) {
    // A replay uses the memory of the capture again, as with the memory pool of a CUDA graph.
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    memory_of_graph.push_back(memory);
  } else if (!in_own_op()) {
    std::free(memory);
  } else if (pending.empty()) {
    release(memory);
  } else {
    pending.push_back({{"", Place()}, nullptr, memory});
  }
}

void set_last_error(cudaError_t error, const std::string& text) {
  last_error = error;
  last_error_text = text;
}

void begin_capture() {
  end_graph();
  has_graph = true;
  is_capturing = true;
}

void end_capture() {
  is_capturing = false;
}

void replay() {
  Op op;
  for (const Work& work : graph) pending.push_back(work);
  op.finish();
}

void end_graph() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  is_capturing = false;
  has_graph = false;
  graph.clear();
  for (void* memory : memory_of_graph) std::free(memory);
  memory_of_graph.clear();
}

}  // namespace emulation

cudaError_t cudaPeekAtLastError() {
  return emulation::last_error;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = emulation::last_error;
  emulation::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  static std::string text;
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      text = "invalid configuration argument: " + emulation::last_error_text;
      return text.c_str();
    case cudaErrorStreamCaptureUnsupported:
      text = "operation not permitted when stream is capturing: " + emulation::last_error_text;
      return text.c_str();
    default:  // errors of a driver, which the emulation does not have
      return "unknown error";
  }
}
