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
  // Addresses of atomic operations that a fence acquires from; no kernel has more.
  static constexpr int kMaxAtomics = 32;

  Fiber* fiber = nullptr;
  State state = State::kReady;
  Place place;  // where it waits
  // ThreadSanitizer's order (order.cpp): whether a fence was passed, and the atomics since.
  bool fenced = false;
  int num_atomics = 0;
  const void* atomics[kMaxAtomics];
};

// A collective of the lanes of one mask of a warp. Lanes may still read its results while others arrive at the next
// one: two slots, in turn.
struct Meeting {
  unsigned mask = 0;
  unsigned arrived = 0;
  Collective kind = Collective::kSync;
  Place place;
  uint64_t generation = 0;
  unsigned votes[2] = {};
  alignas(16) unsigned char values[2][kWarp][8];
  char* tag = nullptr;  // an address for each slot, by which ThreadSanitizer orders accesses
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

  // For the running thread ------------------------------------------------------------------------------------------
  Thread& self() { return threads_[running_]; }
  int running() const { return running_; }
  // Ends the block with this message.
  [[noreturn]] void fail(const std::string& message);
  void wait(State state, const Place& place);
  void wake(int thread);
  // In a shuffled order, lets other threads run first.
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
  std::vector<int> ready_;  // the threads that can run, as a ring
  size_t first_ready_ = 0;
  size_t num_ready_ = 0;
  int running_ = -1;
  std::string failure_;
};

// The block that runs; there is one at a time.
extern Block block;

// The name of the file, from "csrc/" on.
const char* file_of(const Place& place);
// "csrc/…:line", in every build folder alike.
std::string text_of(const Place& place);

// Random numbers for the order of threads and blocks.
struct Order {
  uint64_t state = 1;
  bool shuffled = false;
  uint64_t draw();  // xorshift*
};
extern Order order;

// For ThreadSanitizer (order.cpp) ---------------------------------------------------------------------------------------
// Memory at addresses that no other block of the launch uses: a shared address would order the blocks.
char* fresh_memory(size_t size);
void begin_launch_order();
void end_launch_order();
void begin_thread_order();
void end_thread_order();

}  // namespace emulation
