// Threads of torch's pool that work together on one thing, step by step, and wait for each other in
// between: what a recurrence needs, where a parallel loop for every step would cost more than it.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdint>

#include "cpu/parallel.h"

namespace fastact {

// The members of one call of run_team(); they begin in it and leave it together.
class Team {
 public:
  explicit Team(int64_t wanted) : wanted_(wanted) {}

  int64_t size() const { return size_.load(std::memory_order_relaxed); }

  // Returns when every member has come to it. 35 to 70 ns for two threads (Zen 4).
  void wait();

  // A number below size(), or -1: the others have begun without this thread.
  int64_t join();

 private:
  const int64_t wanted_;
  alignas(64) std::atomic<int64_t> tickets_ = 0;
  alignas(64) std::atomic<int64_t> size_ = 0;
  alignas(64) std::atomic<int64_t> arrived_ = 0;
  alignas(64) std::atomic<int64_t> round_ = 0;
};

// The caller's treatment of subnormal numbers, for the time of an object on another thread: in a
// recurrence one slow step makes all that follow slow.
class DenormalMode {
 public:
  DenormalMode();  // of this thread
  class Adopted {
   public:
    explicit Adopted(const DenormalMode& mode);
    ~Adopted();

   private:
    unsigned before_;
  };

 private:
  unsigned bits_;
};

// f(team, member) on up to `threads` threads at a time, members 0 to team.size() - 1. How many
// there are is known only then: torch's pool may give fewer threads than asked, or give them one
// after the other, and a member that never comes must not be waited for.
template <class F>
void run_team(int64_t threads, const F& f) {
  Team team(threads);
  const auto take_part = [&] {
    const int64_t member = team.join();
    if (member >= 0) {
      f(team, member);
    }
  };
  if (threads <= 1 || in_forked_child() || at::in_parallel_region()) {
    Team alone(1);
    alone.join();
    return f(alone, int64_t{0});
  }
  const DenormalMode mode;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const DenormalMode::Adopted adopted(mode);
    take_part();
  });
}

}  // namespace fastact
