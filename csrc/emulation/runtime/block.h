// The block that runs: its threads, where they wait, its shared memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../include/emulation/collectives.h"
#include "fiber.h"

namespace emulation {

constexpr int kWarp = 32;

enum class State { kReady, kAtBarrier, kAtMeeting, kDone };

struct Thread {
  // More different atomics before a fence than any kernel has.
  static constexpr int kMaxAtomics = 32;

  Fiber* fiber = nullptr;
  State state = State::kReady;
  Place place;  // where it waits
  // ThreadSanitizer's order (order.cpp): whether a fence was passed, and the atomics since.
  bool fenced = false;
  int num_atomics = 0;
  const void* atomics[kMaxAtomics];
};

// Where the lanes of one mask of a warp meet. Results of a meeting are read while the next may already gather: two slots.
struct Meeting {
  unsigned mask = 0;
  unsigned arrived = 0;
  Collective kind = Collective::kSync;
  Place place;
  uint64_t generation = 0;
  unsigned votes[2] = {};
  alignas(16) unsigned char values[2][kWarp][8];
  char* tag = nullptr;  // two places by which ThreadSanitizer orders
};

struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
  Place place;
  Reduction reduction = Reduction::kNone;
  int count[2] = {};  // of predicates that hold
  char* tag = nullptr;
};

struct SharedVariable {
  const void* key = nullptr;
  char* memory = nullptr;
};

struct Warp {
  std::vector<Meeting> meetings;
};

class Block {
 public:
  // Runs the block to its end, and throws std::runtime_error if it cannot. `body` is the kernel with its arguments.
  void run(const char* kernel, const Place& launched, int num_threads, const std::function<void()>& body);

  // Of the running thread -------------------------------------------------------------------------------------------
  Thread& self() { return threads_[running_]; }
  int running() const { return running_; }
  // Gives up: the block ends with this message.
  [[noreturn]] void fail(const std::string& message);
  void wait(State state, const Place& place);
  void wake(int thread);
  // Where the order is drawn, others may go first.
  void yield_if_shuffled(const Place& place);

  std::string who(int thread) const;
  std::string where_launched() const;
  const char* kernel() const { return kernel_; }
  const Place& launched() const { return launched_; }

  std::vector<Thread> threads_;
  int num_threads_ = 0;
  int alive_ = 0;
  Barrier barrier_;
  std::vector<Warp> warps_;
  std::vector<SharedVariable> shared_;
  size_t shared_bytes_ = 0;

 private:
  static void on_fiber();
  void begin(const char* kernel, const Place& launched, int num_threads, const std::function<void()>& body);
  int next();
  void end();
  std::string stuck() const;

  const char* kernel_ = "";
  Place launched_;
  const std::function<void()>* body_ = nullptr;
  std::vector<int> ready_;  // the threads that can run, a ring where the order is not drawn
  size_t first_ready_ = 0;
  size_t num_ready_ = 0;
  int running_ = -1;
  std::string failure_;
};

// The block that runs; there is one at a time.
extern Block block;

// The name from "csrc/" on, of a file that has it.
const char* file_of(const Place& place);
// "csrc/…:line", the same in every build folder.
std::string text_of(const Place& place);

// Where the order of threads and blocks comes from.
struct Order {
  uint64_t state = 1;
  bool shuffled = false;
  uint64_t draw();  // xorshift*
};
extern Order order;

// For ThreadSanitizer (order.cpp) ---------------------------------------------------------------------------------------
// Memory that no block of a launch shares: blocks are ordered by nothing.
char* fresh_memory(size_t size);
void begin_launch_order();
void end_launch_order();
void begin_thread_order();
void end_thread_order();

}  // namespace emulation
