// Memory that a kernel works in and gives back: of the stack where little is wanted, since a tensor
// costs 0.2 us, else from the cache of large outputs.
#pragma once

#include "cpu/memory.h"

namespace fastact {

// Of one thread; up to `kOnStack` bytes lie in the object itself.
template <int64_t kOnStack = 64>
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    if (bytes > kOnStack) {
      memory_ = empty({bytes}, at::kByte);
    }
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* get() {
    return memory_.defined() ? static_cast<char*>(memory_.mutable_data_ptr()) : small_;
  }

 private:
  alignas(64) char small_[kOnStack];
  Tensor memory_;
};

// Rows that are a multiple of 4 KiB apart share the sets of the L1, of which one of 32 KiB holds
// eight lines each: a tile's rows and its panel push each other out. With a line between the rows
// 1024x1024x256 went from 66 to 75 GF/s, 128x1024x4096 with a packed weight from 64 to 79, their
// weights' gradients from 59 to 69 (one core of a Zen 3, in turns).
template <class Int>
bool shares_sets(const Int& row_bytes) {
  return row_bytes % 4096 == 0;
}
// From row to row in memory of one's own.
template <class Int>
Int spread_row_bytes(const Int& row_bytes) {
  return shares_sets(row_bytes) ? row_bytes + 64 : row_bytes;
}

}  // namespace fastact
