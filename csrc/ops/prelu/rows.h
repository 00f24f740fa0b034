// PReLU's input as rows that kernels read: contiguous elements that share one slope, or (channels
// last) that each have their own.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

namespace fastact {

using at::Tensor;

// `self` as `rows` runs of `length` contiguous elements. Row r's slope is slope[r % channels], or,
// where slope_step is 1, row element i's is slope[i].
struct PreluRows {
  int64_t rows;
  int64_t length;
  int64_t channels;
  int slope_step;
};

// Whether prelu_rows() can describe `t`: contiguous, channels last, or (one slope for all) dense in
// any order.
inline bool has_prelu_rows(const Tensor& t, int64_t slopes) {
  return slopes == 1 ? t.is_non_overlapping_and_dense()
                     : t.is_contiguous() || t.is_contiguous(at::MemoryFormat::ChannelsLast) ||
                           t.is_contiguous(at::MemoryFormat::ChannelsLast3d);
}

inline PreluRows prelu_rows(const Tensor& self, int64_t slopes) {
  if (slopes == 1) {
    return {1, self.numel(), 1, 0};
  }
  const int64_t channels = self.size(1);
  if (self.dim() > 2 && self.is_contiguous()) {
    const int64_t inner = self.numel() / std::max<int64_t>(self.size(0) * channels, 1);
    if (inner > 1) {
      return {self.size(0) * channels, inner, channels, 0};
    }
  }
  return {self.numel() / std::max<int64_t>(channels, 1), channels, channels, 1};
}

}  // namespace fastact
