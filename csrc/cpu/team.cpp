#include "cpu/team.h"

#include <chrono>
#include <limits>
#include <thread>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastact {
namespace {

// How long the first member waits for the others: long enough for a thread that sleeps to wake up.
// One whose core is taken is done without. Not tuned by a measurement.
constexpr std::chrono::microseconds kPatience{100};

// A member that waits for longer gives its core away: the one it waits for may need it.
constexpr int kSpins = 1000;

constexpr int64_t kClosed = std::numeric_limits<int64_t>::max() / 2;

void pause() {
#if defined(__SSE2__)
  _mm_pause();
#endif
}

template <class F>
void wait_until(const F& done) {
  for (int spins = 0; !done(); ++spins) {
    spins < kSpins ? pause() : std::this_thread::yield();
  }
}

}  // namespace

int64_t Team::join() {
  const int64_t ticket = tickets_.fetch_add(1, std::memory_order_acq_rel);
  if (ticket >= kClosed) {
    return -1;
  }
  if (ticket > 0) {
    wait_until([&] { return size_.load(std::memory_order_acquire) > 0; });
    return ticket;
  }
  if (wanted_ > 1) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (tickets_.load(std::memory_order_acquire) < wanted_ &&
           std::chrono::steady_clock::now() < deadline) {
      pause();
    }
  }
  size_.store(tickets_.exchange(kClosed, std::memory_order_acq_rel), std::memory_order_release);
  return 0;
}

void Team::wait() {
  const int64_t size = this->size();
  if (size == 1) {
    return;
  }
  const int64_t mine = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(mine + 1, std::memory_order_release);
  } else {
    wait_until([&] { return round_.load(std::memory_order_acquire) != mine; });
  }
}

#if defined(__SSE2__)
namespace {
constexpr unsigned kDenormalBits = 0x8040;  // flush results to zero; take operands as zero
}
DenormalMode::DenormalMode() : bits_(_mm_getcsr() & kDenormalBits) {}
DenormalMode::Adopted::Adopted(const DenormalMode& mode) : before_(_mm_getcsr()) {
  _mm_setcsr((before_ & ~kDenormalBits) | mode.bits_);
}
DenormalMode::Adopted::~Adopted() { _mm_setcsr(before_); }
#else
DenormalMode::DenormalMode() : bits_(0) {}
DenormalMode::Adopted::Adopted(const DenormalMode&) : before_(0) {}
DenormalMode::Adopted::~Adopted() {}
#endif

}  // namespace fastact
