#include "cpu/recurrent/steps.h"

#include <cstring>

namespace fastact {
namespace {

// Multiply-adds of a step that another thread is worth: half a microsecond of one core, where
// two threads wait for each other 35 to 70 ns.
constexpr int64_t kStepWork = 1 << 13;
// Fewer rows than these of a thread take longer than its share of units: micro-tiles are not full.
constexpr int64_t kRowsOfThread = 8;

constexpr int64_t kBytesOfThread = 1 << 17;  // of memory that is read and written, no more

template <class C>
void multiply_all(const void* a_, const void* b_, void* to_, int64_t n) {
  const C* a = static_cast<const C*>(a_);
  const C* b = static_cast<const C*>(b_);
  C* to = static_cast<C*>(to_);
  parallel_for(n, kBytesOfThread / int64_t{sizeof(C)}, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      to[i] = a[i] * b[i];
    }
  });
}

}  // namespace

void multiply_elements(Dtype dtype, const void* a, const void* b, void* to, int64_t n) {
  dtype == kFloat64 ? multiply_all<double>(a, b, to, n) : multiply_all<float>(a, b, to, n);
}

void copy_bytes(const void* from, void* to, int64_t bytes) {
  parallel_for(bytes, kBytesOfThread, [&](int64_t begin, int64_t end) {
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                end - begin);
  });
}

StepPlan StepPlan::choose(const RecurrentProblem& p) {
  const int64_t work = p.batch * p.gates() * p.hidden * p.state;
  const int64_t threads =
      std::clamp<int64_t>(work / kStepWork, 1, std::max(at::get_num_threads(), 1));
  // The last rows end first: a thread of theirs would be idle.
  const bool alike = p.rows[p.steps - 1] == p.batch;
  return {threads, alike && p.batch >= threads * kRowsOfThread};
}

}  // namespace fastact
