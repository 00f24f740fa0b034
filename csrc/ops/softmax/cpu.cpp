// Softmax on the CPU: [outer, length, inner] views of dense tensors, split over threads by rows, or
// by blocks of columns where inner > 1.
#include <ATen/WrapDimUtils.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/log_softmax.h>

#include <cstring>

#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/softmax_rows.h"
#include "cpu/tensors.h"
#include "cpu/workspace.h"
#include "ops/softmax/softmax.h"

namespace fastact {
namespace {

using SoftmaxWorkspace = Workspace<kSoftmaxStackBytes>;

// Columns given to a thread at a time: whole groups of registers of every width and dtype.
constexpr int64_t kColumnBlock = 64;

struct Shape {
  int64_t outer;
  int64_t length;
  int64_t inner;
};

Shape shape_of(const Tensor& t, int64_t dim) {
  Shape shape{1, 1, 1};
  for (int64_t i = 0; i < t.dim(); ++i) {
    (i < dim ? shape.outer : i == dim ? shape.length : shape.inner) *= t.size(i);
  }
  return shape;
}

// f(first row, rows) where inner is 1, else f(offset of a block of columns, columns), in parallel.
template <class Rows, class Columns>
void for_each_slice(const Shape& shape, const Rows& rows, const Columns& columns) {
  const int64_t length = std::max<int64_t>(shape.length, 1);
  if (shape.inner == 1) {
    parallel_for(shape.outer, std::max<int64_t>(kSoftmaxGrain / length, 1),
                 [&](int64_t begin, int64_t end) { rows(begin, end - begin); });
    return;
  }
  const int64_t blocks = (shape.inner + kColumnBlock - 1) / kColumnBlock;
  const int64_t block_elements = length * std::min(shape.inner, kColumnBlock);
  parallel_for(shape.outer * blocks, std::max<int64_t>(kSoftmaxGrain / block_elements, 1),
               [&](int64_t begin, int64_t end) { columns(begin, end, blocks); });
}

// The blocks [begin, end) of for_each_slice, neighbours together: f(offset, columns).
template <class F>
void for_each_run(const Shape& shape, int64_t begin, int64_t end, int64_t blocks, const F& f) {
  while (begin < end) {
    const int64_t outer = begin / blocks;
    const int64_t last = std::min(end, (outer + 1) * blocks);
    const int64_t first_column = begin % blocks * kColumnBlock;
    const int64_t columns = std::min((last - begin) * kColumnBlock, shape.inner - first_column);
    f(outer * shape.length * shape.inner + first_column, columns);
    begin = last;
  }
}

Tensor forward(const Tensor& self, int64_t dim, double scale, bool log) {
  dim = at::maybe_wrap_dim(dim, self.dim());
  const Tensor x = contiguous(self);
  Tensor y = empty(x.sizes(), x.scalar_type());
  if (x.numel() == 0) {
    return y;
  }
  const Shape shape = x.dim() == 0 ? Shape{1, 1, 1} : shape_of(x, dim);
  const SoftmaxKernels& k = kernels().softmax[table_dtype(x.scalar_type())];
  const SoftmaxArguments arguments{shape.length, scale, log};
  const int64_t size = x.element_size();
  const char* px = static_cast<const char*>(x.const_data_ptr());
  char* py = static_cast<char*>(y.mutable_data_ptr());
  for_each_slice(
      shape,
      [&](int64_t first, int64_t rows) {
        const int64_t offset = first * shape.length * size;
        softmax_rows(k, px + offset, py + offset, rows, arguments);
      },
      [&](int64_t begin, int64_t end, int64_t blocks) {
        SoftmaxWorkspace scratch(k.columns_scratch(shape.length));
        for_each_run(shape, begin, end, blocks, [&](int64_t offset, int64_t columns) {
          k.columns(px + offset * size, py + offset * size, shape.inner, columns, arguments,
                    scratch.get());
        });
      });
  return y;
}

// The rows of a mask, `length` elements long, contiguous: nothing else of it is expanded.
Tensor whole_rows(const Tensor& mask, int64_t length) {
  at::DimVector own(mask.sizes().begin(), mask.sizes().end());
  if (own.empty()) {
    own.push_back(1);
  }
  own.back() = length;
  return contiguous(mask.expand(own));
}

// Which row of a mask belongs to a row of what it masks.
class MaskRows {
 public:
  // `mask` from whole_rows().
  MaskRows(const Tensor& mask, at::IntArrayRef sizes)
      : mask_(mask.expand(sizes)), run_(sizes.size() > 1 ? mask_.size(-2) : 1) {}

  const void* row(int64_t row) const {
    int64_t offset = row % run_ * stride();
    for (int64_t d = mask_.dim() - 3, outer = row / run_; d >= 0; --d) {
      offset += outer % mask_.size(d) * mask_.stride(d);
      outer /= mask_.size(d);
    }
    return static_cast<const char*>(mask_.const_data_ptr()) + offset * mask_.element_size();
  }
  // From a row to the next, up to end_of_run().
  int64_t stride() const { return mask_.dim() > 1 ? mask_.stride(-2) : 0; }
  int64_t end_of_run(int64_t row) const { return (row / run_ + 1) * run_; }

 private:
  Tensor mask_;
  int64_t run_;
};

// Softmax of rows under a mask that broadcasts against `self`, along the last dimension.
Tensor masked_forward(const Tensor& self, const Tensor& mask, double scale) {
  const Tensor x = contiguous(self);
  Tensor y = empty(x.sizes(), x.scalar_type());
  const int64_t length = x.size(-1);
  if (x.numel() == 0) {
    return y;
  }
  const SoftmaxKernels& k = kernels().softmax[table_dtype(x.scalar_type())];
  SoftmaxArguments arguments{length, scale, /*log=*/false};
  Tensor rows_of_mask = whole_rows(mask, length);
  if (mask.scalar_type() == at::kBool) {
    Tensor additive = empty(rows_of_mask.sizes(), x.scalar_type());
    k.widen_mask(rows_of_mask.const_data_ptr(), additive.mutable_data_ptr(), additive.numel());
    rows_of_mask = additive;
    arguments.select = true;
  }
  const MaskRows m(rows_of_mask, x.sizes());
  const int64_t size = x.element_size();
  const char* px = static_cast<const char*>(x.const_data_ptr());
  char* py = static_cast<char*>(y.mutable_data_ptr());
  parallel_for(x.numel() / length, std::max<int64_t>(kSoftmaxGrain / length, 1),
               [&](int64_t begin, int64_t end) {
                 SoftmaxWorkspace scratch(k.rows_scratch(length));
                 for (int64_t row = begin; row < end;) {
                   const int64_t last = std::min(end, m.end_of_run(row));
                   k.rows(px + row * length * size, m.row(row), m.stride(),
                          py + row * length * size, last - row, arguments, scratch.get());
                   row = last;
                 }
               });
  return y;
}

// Row i of each matrix takes its first i + 1 elements; the others are not read.
Tensor causal_forward(const Tensor& self, double scale) {
  const Tensor x = contiguous(self);
  Tensor y = empty(x.sizes(), x.scalar_type());
  const int64_t length = x.size(-1);
  const int64_t run = x.size(-2);
  if (x.numel() == 0) {
    return y;
  }
  const SoftmaxKernels& k = kernels().softmax[table_dtype(x.scalar_type())];
  const int64_t size = x.element_size();
  const char* px = static_cast<const char*>(x.const_data_ptr());
  char* py = static_cast<char*>(y.mutable_data_ptr());
  parallel_for(x.numel() / length, std::max<int64_t>(2 * kSoftmaxGrain / length, 1),
               [&](int64_t begin, int64_t end) {
                 SoftmaxWorkspace scratch(k.rows_scratch(length));
                 SoftmaxArguments arguments{length, scale, /*log=*/false};
                 arguments.alone = true;
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t count = std::min(row % run + 1, length);
                   arguments.length = count;
                   char* to = py + row * length * size;
                   k.rows(px + row * length * size, nullptr, 0, to, 1, arguments, scratch.get());
                   std::memset(to + count * size, 0, (length - count) * size);
                 }
               });
  return y;
}

Tensor backward(const Tensor& grad, const Tensor& output, int64_t dim, double scale, bool log) {
  const Tensor g = contiguous(grad);
  const Tensor y = contiguous(output);
  Tensor dx = empty(y.sizes(), y.scalar_type());
  if (y.numel() == 0) {
    return dx;
  }
  const Shape shape = y.dim() == 0 ? Shape{1, 1, 1} : shape_of(y, dim);
  const SoftmaxKernels& k = kernels().softmax[table_dtype(y.scalar_type())];
  const SoftmaxArguments arguments{shape.length, scale, log};
  const int64_t size = y.element_size();
  const char* pg = static_cast<const char*>(g.const_data_ptr());
  const char* py = static_cast<const char*>(y.const_data_ptr());
  char* pdx = static_cast<char*>(dx.mutable_data_ptr());
  for_each_slice(
      shape,
      [&](int64_t first, int64_t rows) {
        const int64_t offset = first * shape.length * size;
        k.rows_backward(pg + offset, py + offset, pdx + offset, rows, arguments);
      },
      [&](int64_t begin, int64_t end, int64_t blocks) {
        for_each_run(shape, begin, end, blocks, [&](int64_t offset, int64_t columns) {
          k.columns_backward(pg + offset * size, py + offset * size, pdx + offset * size,
                             shape.inner, columns, arguments);
        });
      });
  return dx;
}

// Whether the kernels of rows serve `t` under this mask.
bool covered_by_rows(const Tensor& t, const OptionalTensor& mask, int64_t dim) {
  if (!covered(t)) {
    return false;
  }
  if (t.dim() == 0 || dim != t.dim() - 1) {
    return not_covered("a softmax with a mask over another dimension than the last");
  }
  const bool is_boolean = is_defined(mask) && mask->is_cpu() && mask->layout() == at::kStrided &&
                          mask->scalar_type() == at::kBool;
  return !is_defined(mask) || is_boolean || covered(*mask);
}

}  // namespace

Tensor masked_softmax_cpu(const Tensor& self, const OptionalTensor& mask, int64_t dim, double scale,
                          bool is_causal) {
  dim = check_masked_softmax(self, mask, dim, is_causal);
  if (!covered_by_rows(self, mask, dim)) {
    return compose_masked_softmax(self, mask, dim, scale, is_causal);
  }
  return is_causal          ? causal_forward(self, scale)
         : is_defined(mask) ? masked_forward(self, *mask, scale)
                            : forward(self, dim, scale, /*log=*/false);
}

Tensor masked_softmax_backward_cpu(const Tensor& grad, const Tensor& output,
                                   const OptionalTensor& mask, int64_t dim, double scale,
                                   bool is_causal) {
  dim = check_masked_softmax_backward(grad, output, mask, dim, is_causal);
  if (!covered(grad) || !covered_by_rows(output, mask, dim)) {
    return compose_masked_softmax_backward(grad, output, mask, dim, scale, is_causal);
  }
  if (!is_causal && !is_defined(mask)) {
    return backward(grad, output, dim, scale, /*log=*/false);
  }
  const Tensor g = contiguous(grad);
  const Tensor y = contiguous(output);
  Tensor dx = empty(y.sizes(), y.scalar_type());
  if (y.numel() == 0) {
    return dx;
  }
  const int64_t length = y.size(-1);
  const int64_t run = y.dim() > 1 ? y.size(-2) : 1;
  const std::optional<MaskRows> m =
      is_causal ? std::nullopt : std::optional<MaskRows>({whole_rows(*mask, length), y.sizes()});
  const SoftmaxKernels& k = kernels().softmax[table_dtype(y.scalar_type())];
  const SoftmaxArguments arguments{length, scale, /*log=*/false};
  const int64_t row_bytes = length * y.element_size();
  const char* pg = static_cast<const char*>(g.const_data_ptr());
  const char* py = static_cast<const char*>(y.const_data_ptr());
  char* pdx = static_cast<char*>(dx.mutable_data_ptr());
  parallel_for(y.numel() / length, std::max<int64_t>(kSoftmaxGrain / length, 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t at = row * row_bytes;
                   k.rows_backward(pg + at, py + at, pdx + at, 1, arguments);
                   if (is_causal) {
                     const int64_t kept = std::min(row % run + 1, length) * y.element_size();
                     std::memset(pdx + at + kept, 0, row_bytes - kept);
                   } else {
                     k.clear_masked(m->row(row), pdx + at, length);
                   }
                 }
               });
  return dx;
}

Tensor softmax_cpu(const Tensor& self, int64_t dim, double scale) {
  return covered(self) ? forward(self, dim, scale, /*log=*/false)
                       : compose_softmax(self, dim, scale);
}

Tensor log_softmax_cpu(const Tensor& self, int64_t dim) {
  return covered(self) ? forward(self, dim, 1, /*log=*/true) : at::log_softmax(self, dim);
}

Tensor softmax_backward_cpu(const Tensor& grad, const Tensor& output, int64_t dim, double scale) {
  dim = check_softmax_backward("softmax_backward", grad, output, dim);
  return covered(grad, output) ? backward(grad, output, dim, scale, /*log=*/false)
                               : compose_softmax_backward(grad, output, dim, scale);
}

Tensor log_softmax_backward_cpu(const Tensor& grad, const Tensor& output, int64_t dim) {
  dim = check_softmax_backward("log_softmax_backward", grad, output, dim);
  return covered(grad, output) ? backward(grad, output, dim, 1, /*log=*/true)
                               : compose_log_softmax_backward(grad, output, dim);
}

}  // namespace fastact
