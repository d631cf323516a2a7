// Barriers of a block, shuffles, votes and __syncwarp of a warp.
#include "../include/emulation/collectives.h"

#include <cstdio>
#include <cstring>

#include "../include/emulation/mutants.h"
#include "block.h"
#include "sanitizers.h"

namespace emulation {
namespace {

bool same_place(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

const char* name_of(Collective kind) {
  switch (kind) {
    case Collective::kShuffle:
      return "shuffle";
    case Collective::kBallot:
      return "ballot";
    case Collective::kAny:
      return "any";
    case Collective::kAll:
      return "all";
    case Collective::kSync:
      return "__syncwarp";
  }
  return "";
}

std::string hex(unsigned mask) {
  char text[11];
  std::snprintf(text, sizeof(text), "0x%08x", mask);
  return text;
}

Meeting& meeting_of(Warp& warp, unsigned mask) {
  for (Meeting& one : warp.meetings) {
    if (one.mask == mask) return one;
  }
  Meeting meeting;
  meeting.mask = mask;
  if (has_tsan()) meeting.tag = fresh_memory(16);
  // Lanes hold references to meetings: they must not move.
  if (warp.meetings.size() == warp.meetings.capacity()) block.fail("more masks in one warp than are emulated");
  warp.meetings.push_back(meeting);
  return warp.meetings.back();
}

void check_lanes(Collective kind, unsigned mask, const Place& place) {
  const int thread = block.running();
  const int first = thread / kWarp * kWarp;
  if ((mask >> (thread - first) & 1) == 0) {
    block.fail(block.who(thread) + " is not in the mask " + hex(mask) + " of its " + name_of(kind) + " " +
               text_of(place));
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const int other = first + lane;
    if (other >= block.num_threads_ || block.threads_[other].state == State::kDone) {
      block.fail(block.who(thread) + " waits at the " + name_of(kind) + " " + text_of(place) + " for lane " +
                 std::to_string(lane) + ", which " + (other >= block.num_threads_ ? "is not there" : "has exited"));
    }
  }
}

// Waits for all lanes of the mask. `deposit` stores the contribution of this lane; `slot` receives the slot of the
// results.
template <typename Deposit>
Meeting& meet(Collective kind, unsigned mask, const Place& place, int& slot, const Deposit& deposit) {
  check_lanes(kind, mask, place);
  const int thread = block.running();
  const int first = thread / kWarp * kWarp;
  const int lane = thread - first;
  Meeting& meeting = meeting_of(block.warps_[thread / kWarp], mask);
  slot = static_cast<int>(meeting.generation & 1);
  if (meeting.arrived == 0) {
    meeting.kind = kind;
    meeting.place = place;
    meeting.votes[slot] = 0;
  } else if (meeting.kind != kind || !same_place(meeting.place, place)) {
    block.fail(block.who(thread) + " is at the " + name_of(kind) + " " + text_of(place) + " while lanes " +
               hex(meeting.arrived) + " of its warp are at the " + name_of(meeting.kind) + " " +
               text_of(meeting.place));
  }
  deposit(meeting, lane);
  const bool orders = has_tsan() && kind == Collective::kSync;
  if (orders) __tsan_release(meeting.tag + 8 * slot);
  meeting.arrived |= 1u << lane;
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    ++meeting.generation;
    for (int other = 0; other < kWarp; ++other) {
      if (other != lane && (mask >> other & 1) != 0) block.wake(first + other);
    }
    block.yield_if_shuffled(place);
  } else {
    block.wait(State::kAtMeeting, place);
  }
  if (orders) __tsan_acquire(meeting.tag + 8 * slot);
  return meeting;
}

}  // namespace

int sync_threads(int value, Reduction reduction, const Place& place) {
  Barrier& barrier = block.barrier_;
  const auto self = [&] { return "the barrier " + text_of(place); };  // made only for an error
  if (block.alive_ < block.num_threads_) {
    int exited = 0;
    while (block.threads_[exited].state != State::kDone) ++exited;
    block.fail(block.who(block.running()) + " waits at " + self() + " for thread " + std::to_string(exited) +
               ", which has exited");
  }
  const int slot = static_cast<int>(barrier.generation & 1);
  if (barrier.arrived == 0) {
    barrier.place = place;
    barrier.reduction = reduction;
    barrier.count[slot] = 0;
  } else if (!same_place(barrier.place, place) || barrier.reduction != reduction) {
    block.fail(block.who(block.running()) + " is at " + self() + " while others are at the barrier " +
               text_of(barrier.place));
  }
  barrier.count[slot] += value != 0 ? 1 : 0;
  if (has_tsan()) __tsan_release(barrier.tag + 8 * slot);
  if (++barrier.arrived == block.num_threads_) {
    barrier.arrived = 0;
    ++barrier.generation;
    for (int t = 0; t < block.num_threads_; ++t) {
      if (t != block.running()) block.wake(t);
    }
    block.yield_if_shuffled(place);
  } else {
    block.wait(State::kAtBarrier, place);
  }
  if (has_tsan()) __tsan_acquire(barrier.tag + 8 * slot);
  const int count = barrier.count[slot];
  return reduction == Reduction::kOr ? count > 0 : reduction == Reduction::kAnd ? count == block.num_threads_ : count;
}

void exchange(unsigned mask, const void* value, void* result, size_t size, int source, const Place& place) {
  if (source < 0 || source >= kWarp || (mask >> source & 1) == 0) {
    block.fail(block.who(block.running()) + " shuffles from lane " + std::to_string(source) +
               ", which is not in the mask " + hex(mask) + ", " + text_of(place));
  }
  int slot = 0;
  const Meeting& meeting = meet(Collective::kShuffle, mask, place, slot,
                                [&](Meeting& m, int lane) { copy_bytes(m.values[slot][lane], value, size); });
  copy_bytes(result, meeting.values[slot][source], size);
}

unsigned vote(Collective kind, unsigned mask, bool predicate, const Place& place) {
  int slot = 0;
  const Meeting& meeting =
      meet(kind, mask, place, slot, [&](Meeting& m, int lane) { m.votes[slot] |= predicate ? 1u << lane : 0u; });
  return meeting.votes[slot];
}

void sync_warp(unsigned mask, const Place& place) {
  if (skips_syncwarp) {
    skips_syncwarp = false;
    return;
  }
  int slot = 0;
  meet(Collective::kSync, mask, place, slot, [](Meeting&, int) {});
}

}  // namespace emulation
