// The only road to threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace fastact {

// True in a child of the process that loaded the library. There torch's thread pool is a copy of
// one whose threads do not exist any more: eager PyTorch hangs in it, fastact runs serially.
bool in_forked_child();

// f(begin, end) over pieces of [0, n), on torch's own thread pool: a second pool would fight with
// its spinning workers. Every piece but the last is a multiple of `grain` long. The pieces depend
// on the number of threads, so a kernel whose result depends on them must number its own chunks.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  if (n <= grain || in_forked_child() || at::in_parallel_region()) {
    if (n > 0) {
      f(int64_t{0}, n);
    }
    return;
  }
  const int64_t pieces = (n + grain - 1) / grain;
  at::parallel_for(0, pieces, 1,
                   [&](int64_t begin, int64_t end) { f(begin * grain, std::min(end * grain, n)); });
}

}  // namespace fastact
