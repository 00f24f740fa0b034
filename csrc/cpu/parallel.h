// The only way to threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace fastact {

// True in a child of the process that loaded the library. There torch's thread pool is a copy of
// one whose threads do not exist any more: eager PyTorch hangs in it, fastact runs serially.
bool in_forked_child();

// f(begin, end) over equal pieces of [0, n), one for each of torch's threads (a second pool would
// fight with its spinning workers), but of at least `grain`; of many elements, whole cache lines.
// The pieces depend on the number of threads, so a kernel whose result depends on them must number
// its own chunks.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  if (n <= grain || in_forked_child() || at::in_parallel_region()) {
    if (n > 0) {
      f(int64_t{0}, n);
    }
    return;
  }
  constexpr int64_t kLine = 64;  // of the narrowest elements
  const int64_t pieces = std::min<int64_t>(at::get_num_threads(), (n + grain - 1) / grain);
  int64_t length = (n + pieces - 1) / pieces;
  if (grain >= kLine) {
    length = (length + kLine - 1) / kLine * kLine;
  }
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    if (begin * length < n) {
      f(begin * length, std::min(end * length, n));
    }
  });
}

}  // namespace fastact
