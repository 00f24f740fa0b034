// How the elements of strided tensors lie in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <numeric>

namespace fastact {

using at::Tensor;

// Whether element i in memory order is the same element of both tensors, with no gap between them.
inline bool same_dense_layout(const Tensor& a, const Tensor& b) {
  return (a.is_contiguous() && b.is_contiguous()) ||
         (a.strides() == b.strides() && a.is_non_overlapping_and_dense());
}

// The dimensions in the order in which they lie in memory, so that a dense tensor is contiguous in
// it, and results keep its layout, as PyTorch's do.
class MemoryOrder {
 public:
  explicit MemoryOrder(const Tensor& dense)
      : contiguous_(dense.is_contiguous()), order_(dense.dim()), inverse_(dense.dim()) {
    if (contiguous_) {
      return;
    }
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return dense.stride(a) > dense.stride(b); });
    for (size_t i = 0; i < order_.size(); ++i) {
      inverse_[order_[i]] = static_cast<int64_t>(i);
    }
  }
  Tensor apply(const Tensor& t) const { return contiguous_ ? t : t.permute(order_); }
  Tensor revert(const Tensor& t) const { return contiguous_ ? t : t.permute(inverse_); }
  int64_t position(int64_t dim) const { return contiguous_ ? dim : inverse_[dim]; }

 private:
  bool contiguous_;
  at::DimVector order_;
  at::DimVector inverse_;
};

}  // namespace fastact
