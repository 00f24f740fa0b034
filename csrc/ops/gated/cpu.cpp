// The gated units on the CPU: `self` as [outer, 2, run], run contiguous elements in each half.
#include <algorithm>

#include "core/layout.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"
#include "ops/gated/gated.h"

namespace fastact {
namespace {

constexpr int64_t kGrain = 16384;  // elements of output a thread is worth

// f(index of the half's first element, index of the output's, elements): pieces of runs, in
// parallel.
template <class F>
void for_each_piece(const Tensor& self, int64_t dim, const F& f) {
  int64_t outer = 1;
  for (int64_t i = 0; i < dim; ++i) {
    outer *= self.size(i);
  }
  const int64_t run = outer == 0 ? 0 : self.numel() / outer / 2;
  if (run == 0) {
    return;
  }
  const int64_t pieces = (run + kGrain - 1) / kGrain;
  parallel_for(outer * pieces, std::max<int64_t>(kGrain / run, 1), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t row = k / pieces;
      const int64_t first = k % pieces * kGrain;
      f(row * 2 * run + first, row * run + first, std::min(kGrain, run - first), run);
    }
  });
}

Tensor dense(const Tensor& self) {
  if (self.is_non_overlapping_and_dense()) {
    return self;
  }
  Tensor result = empty_like(self);
  copy(self, result);
  return result;
}

}  // namespace

Tensor gated_cpu(const GatedUnit& unit, const Tensor& self, int64_t dim) {
  dim = check_gated(unit, self, dim);
  if (!covered(self)) {
    return compose_gated(unit, self, dim);
  }
  const Tensor own = dense(self);
  const MemoryOrder order(own);
  const Tensor x = order.apply(own);
  dim = order.position(dim);
  at::DimVector sizes(x.sizes().begin(), x.sizes().end());
  sizes[dim] /= 2;
  Tensor y = empty(sizes, x.scalar_type());
  const GatedKernel kernel = kernels().elementwise[table_dtype(x.scalar_type())].gated[unit.gate];
  const int64_t size = x.element_size();
  const char* px = static_cast<const char*>(x.const_data_ptr());
  char* py = static_cast<char*>(y.mutable_data_ptr());
  for_each_piece(x, dim, [&](int64_t in, int64_t out, int64_t n, int64_t run) {
    const char* first = px + in * size;
    const char* second = first + run * size;
    kernel(unit.gate_first ? first : second, unit.gate_first ? second : first, py + out * size, n);
  });
  return order.revert(y);
}

Tensor gated_backward_cpu(const GatedUnit& unit, const Tensor& grad, const Tensor& self,
                          int64_t dim) {
  dim = check_gated_backward(unit, grad, self, dim);
  if (!covered(self, grad)) {
    return compose_gated_backward(unit, grad, self, dim);
  }
  const Tensor own = dense(self);
  const MemoryOrder order(own);
  const Tensor x = order.apply(own);
  const Tensor g = contiguous(order.apply(grad));
  dim = order.position(dim);
  Tensor dx = empty(x.sizes(), x.scalar_type());
  const GatedBackwardKernel kernel =
      kernels().elementwise[table_dtype(x.scalar_type())].gated_backward[unit.gate];
  const int64_t size = x.element_size();
  const char* pg = static_cast<const char*>(g.const_data_ptr());
  const char* px = static_cast<const char*>(x.const_data_ptr());
  char* pdx = static_cast<char*>(dx.mutable_data_ptr());
  for_each_piece(x, dim, [&](int64_t in, int64_t out, int64_t n, int64_t run) {
    const int64_t gate = (in + (unit.gate_first ? 0 : run)) * size;
    const int64_t value = (in + (unit.gate_first ? run : 0)) * size;
    kernel(pg + out * size, px + gate, px + value, pdx + gate, pdx + value, n);
  });
  return order.revert(dx);
}

}  // namespace fastact
