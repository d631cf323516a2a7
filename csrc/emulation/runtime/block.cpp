#include "block.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>

#include "sanitizers.h"

EmulatedIndex threadIdx{};
EmulatedIndex blockIdx{};
EmulatedIndex blockDim{};
EmulatedIndex gridDim{};

namespace emulation {

Block block;
Order order;

namespace {

Fiber* main_fiber = nullptr;
// Under ThreadSanitizer a block draws one of several sets of fibers: all accesses by one fiber are ordered, so that a
// race between two blocks shows only if different fibers run them.
constexpr size_t kTsanSets = 5;
// Never destroyed: kernels may run in destructors at the end of the process.
std::vector<std::vector<Fiber*>>& fiber_sets = *new std::vector<std::vector<Fiber*>>;

}  // namespace

uint64_t Order::draw() {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545F4914F6CDD1Dull >> 16;
}

const char* file_of(const Place& place) {
  const char* file = place.file_name();
  for (const char* at = file; (at = std::strstr(at, "csrc/")) != nullptr; ++at) file = at;
  return file;
}

std::string text_of(const Place& place) {
  return file_of(place) + (":" + std::to_string(place.line()));
}

std::string Block::who(int thread) const {
  return "block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(thread);
}

std::string Block::where_launched() const {
  return std::string(kernel_) + " (launched at " + text_of(launched_) + ")";
}

void Block::fail(const std::string& message) {
  if (failure_.empty()) failure_ = where_launched() + ": " + message;
  for (;;) Fiber::switch_to(*self().fiber, *main_fiber, true);
}

void Block::wake(int thread) {
  threads_[thread].state = State::kReady;
  ready_[(first_ready_ + num_ready_++) % ready_.size()] = thread;
}

void Block::wait(State state, const Place& place) {
  self().state = state;
  self().place = place;
  Fiber::switch_to(*self().fiber, *main_fiber, false);
}

void Block::yield_if_shuffled(const Place& place) {
  if (order.shuffled) {
    wake(running_);
    wait(State::kReady, place);
  }
}

int Block::next() {
  if (order.shuffled) {
    const size_t drawn = (first_ready_ + order.draw() % num_ready_) % ready_.size();
    std::swap(ready_[drawn], ready_[first_ready_]);
  }
  const int thread = ready_[first_ready_];
  first_ready_ = (first_ready_ + 1) % ready_.size();
  --num_ready_;
  return thread;
}

void Block::on_fiber() {
  Fiber::begin(*main_fiber);
  begin_thread_order();
  try {
    (*block.body_)();
  } catch (const std::exception& error) {
    block.fail(block.who(block.running_) + ": " + error.what());
  }
  end_thread_order();
  block.self().state = State::kDone;
  --block.alive_;
  Fiber::switch_to(*block.self().fiber, *main_fiber, true);
  std::abort();
}

void Block::begin(const char* kernel, const Place& launched, int num_threads, const std::function<void()>& body) {
  kernel_ = kernel;
  launched_ = launched;
  body_ = &body;
  num_threads_ = num_threads;
  alive_ = num_threads;
  failure_.clear();
  if (threads_.size() < static_cast<size_t>(num_threads)) threads_.resize(num_threads);
  barrier_ = Barrier{};
  const int num_warps = (num_threads + kWarp - 1) / kWarp;
  if (warps_.size() < static_cast<size_t>(num_warps)) warps_.resize(num_warps);
  for (int w = 0; w < num_warps; ++w) {
    warps_[w].meetings.clear();
    warps_[w].meetings.reserve(8);
  }
  shared_.clear();
  shared_.reserve(32);
  shared_bytes_ = 0;
  if (has_tsan()) barrier_.tag = fresh_memory(16);

  fiber_sets.resize(has_tsan() ? kTsanSets : 1);
  std::vector<Fiber*>& fibers = fiber_sets[order.draw() % fiber_sets.size()];
  while (fibers.size() < static_cast<size_t>(num_threads)) fibers.push_back(new Fiber());
  ready_.resize(num_threads);
  first_ready_ = 0;
  num_ready_ = 0;
  for (int t = 0; t < num_threads; ++t) {
    Thread& thread = threads_[t];
    thread.fiber = fibers[t];
    thread.fenced = false;
    thread.num_atomics = 0;
    thread.fiber->rewind(&Block::on_fiber);
    wake(t);
  }
}

std::string Block::stuck() const {
  std::map<std::string, std::pair<int, int>> waiting;  // place: number of threads, the first of them
  for (int t = 0; t < num_threads_; ++t) {
    const Thread& thread = threads_[t];
    const std::string at =
        thread.state == State::kDone
            ? "exited"
            : (thread.state == State::kAtBarrier ? "at the barrier " : "at the collective ") + text_of(thread.place);
    ++waiting.try_emplace(at, 0, t).first->second.first;
  }
  std::string text = "block " + std::to_string(blockIdx.x) + " is stuck:";
  const char* separator = " ";
  for (const auto& [at, threads] : waiting) {
    text += separator + std::to_string(threads.first) + " threads (" + std::to_string(threads.second) + " first) " + at;
    separator = "; ";
  }
  return text;
}

void Block::end() {
  if (has_written()) {
    for (const SharedVariable& variable : shared_) emulation_forget(variable.memory);
  }
  // Under ThreadSanitizer the memory belongs to the arena of order.cpp.
  if (!has_tsan()) {
    for (const SharedVariable& variable : shared_) std::free(variable.memory);
  }
  running_ = -1;
}

void Block::run(const char* kernel, const Place& launched, int num_threads, const std::function<void()>& body) {
  Fiber here{Fiber::Main{}};
  main_fiber = &here;
  begin(kernel, launched, num_threads, body);
  while (num_ready_ > 0 && failure_.empty()) {
    running_ = next();
    threadIdx.x = static_cast<unsigned>(running_);
    Fiber::switch_to(here, *threads_[running_].fiber, false);
  }
  if (failure_.empty() && alive_ > 0) failure_ = where_launched() + ": " + stuck();
  end();
  main_fiber = nullptr;
  if (!failure_.empty()) {
    for (int t = 0; t < num_threads; ++t) Fiber::join(here, *threads_[t].fiber);
  }
  if (!failure_.empty()) throw std::runtime_error("emulated CUDA: " + failure_);
}

}  // namespace emulation
