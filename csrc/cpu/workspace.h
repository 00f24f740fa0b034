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

}  // namespace fastact
