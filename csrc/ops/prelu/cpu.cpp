// PReLU on the CPU. Whatever the input's layout, it is read as rows of contiguous elements that
// share one slope, or (channels last) that each have their own.
#include <ATen/Dispatch.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/zeros.h>

#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"
#include "ops/prelu/prelu.h"
#include "ops/prelu/rows.h"

namespace fastact {
namespace {

// The largest piece of a row that is one unit of work, and of the slope gradient's summation:
// fixed, so that the sum does not depend on the number of threads. 16K fp32 elements are 64 KiB.
constexpr int64_t kPiece = 16384;

// `t` itself where prelu_rows() can describe it, else a contiguous copy.
Tensor dense(const Tensor& t, int64_t slopes) {
  return has_prelu_rows(t, slopes) ? t : contiguous(t);
}

// Work units: whole rows where they are short, pieces of rows where they are long.
struct Units {
  int64_t pieces_per_row;
  int64_t rows_per_unit;
  int64_t count;
};

Units units_of(const PreluRows& r) {
  if (r.length > kPiece) {
    const int64_t pieces = (r.length + kPiece - 1) / kPiece;
    return {pieces, 1, r.rows * pieces};
  }
  const int64_t rows = std::max<int64_t>(kPiece / std::max<int64_t>(r.length, 1), 1);
  return {1, rows, (r.rows + rows - 1) / rows};
}

// f(row, first element, one past the last element) over the units [begin, end).
template <class F>
void for_each_run(const PreluRows& r, const Units& u, int64_t begin, int64_t end, const F& f) {
  for (int64_t unit = begin; unit < end; ++unit) {
    if (u.pieces_per_row > 1) {
      const int64_t start = unit % u.pieces_per_row * kPiece;
      f(unit, unit / u.pieces_per_row, start, std::min(start + kPiece, r.length));
    } else {
      const int64_t last = std::min((unit + 1) * u.rows_per_unit, r.rows);
      for (int64_t row = unit * u.rows_per_unit; row < last; ++row) {
        f(unit, row, int64_t{0}, r.length);
      }
    }
  }
}

}  // namespace

Tensor prelu_cpu(const Tensor& self, const Tensor& weight) {
  check_prelu("prelu", self, weight);
  if (!covered(self, weight)) {
    return at::prelu(self, weight);
  }
  const int64_t slopes = weight.numel();
  const Tensor x = dense(self, slopes);
  const Tensor w = contiguous(weight);
  // at::empty_like(self)'s strides, whatever layout the kernel reads.
  Tensor result = empty_like(self);
  Tensor y = result.strides() == x.strides() || (result.is_contiguous() && x.is_contiguous())
                 ? result
                 : empty_like(x);
  const PreluKernel kernel = kernels().elementwise[table_dtype(x.scalar_type())].prelu;
  const PreluRows r = prelu_rows(x, slopes);
  const Units u = units_of(r);
  const int64_t size = x.element_size();
  const char* px = static_cast<const char*>(x.const_data_ptr());
  const char* pw = static_cast<const char*>(w.const_data_ptr());
  char* py = static_cast<char*>(y.mutable_data_ptr());
  parallel_for(u.count, 4, [&](int64_t begin, int64_t end) {
    for_each_run(r, u, begin, end, [&](int64_t, int64_t row, int64_t first, int64_t last) {
      const int64_t offset = (row * r.length + first) * size;
      const int64_t slope = r.slope_step ? first : row % r.channels;
      kernel(px + offset, pw + slope * size, r.slope_step, py + offset, last - first);
    });
  });
  if (!y.is_same(result)) {
    copy(y, result);
  }
  return result;
}

std::tuple<Tensor, Tensor> prelu_backward_cpu(const Tensor& grad, const Tensor& self,
                                              const Tensor& weight) {
  check_prelu_backward(grad, self, weight);
  if (!covered(self, weight, grad)) {
    return compose_prelu_backward(grad, self, weight);
  }
  const int64_t slopes = weight.numel();
  const Tensor x = dense(self, slopes);
  const Tensor w = contiguous(weight);
  Tensor g = grad;
  if (g.strides() != x.strides()) {
    g = empty_like(x);
    copy(grad, g);
  }
  Tensor result = empty_like(self);
  Tensor dx = result.strides() == x.strides() ? result : empty_like(x);

  const PreluRows r = prelu_rows(x, slopes);
  const Units u = units_of(r);
  // One partial sum a unit and slope: added up in order afterwards, in double.
  const at::ScalarType sum_dtype = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t sums_per_unit = r.slope_step ? r.channels : u.rows_per_unit;
  const Tensor partial = at::zeros({u.count, sums_per_unit}, sum_dtype);
  const int64_t sum_size = partial.element_size();

  const PreluBackwardKernel kernel =
      kernels().elementwise[table_dtype(x.scalar_type())].prelu_backward;
  const int64_t size = x.element_size();
  const char* pg = static_cast<const char*>(g.const_data_ptr());
  const char* px = static_cast<const char*>(x.const_data_ptr());
  const char* pw = static_cast<const char*>(w.const_data_ptr());
  char* pdx = static_cast<char*>(dx.mutable_data_ptr());
  char* psum = static_cast<char*>(partial.mutable_data_ptr());
  parallel_for(u.count, 4, [&](int64_t begin, int64_t end) {
    for_each_run(r, u, begin, end, [&](int64_t unit, int64_t row, int64_t first, int64_t last) {
      const int64_t offset = (row * r.length + first) * size;
      const int64_t slope = r.slope_step ? first : row % r.channels;
      const int64_t sum = r.slope_step           ? first
                          : u.pieces_per_row > 1 ? 0
                                                 : row - unit * u.rows_per_unit;
      kernel(pg + offset, px + offset, pw + slope * size, r.slope_step, pdx + offset,
             psum + (unit * sums_per_unit + sum) * sum_size, last - first);
    });
  });

  std::vector<double> total(slopes, 0.);
  const auto add_up = [&](const auto* sums) {
    for (int64_t unit = 0; unit < u.count; ++unit) {
      for (int64_t i = 0; i < sums_per_unit; ++i) {
        const int64_t row =
            u.pieces_per_row > 1 ? unit / u.pieces_per_row : unit * u.rows_per_unit + i;
        const int64_t slope = r.slope_step ? i : row % r.channels;
        total[slope] += sums[unit * sums_per_unit + i];
      }
    }
  };
  if (sum_dtype == at::kDouble) {
    add_up(partial.const_data_ptr<double>());
  } else {
    add_up(partial.const_data_ptr<float>());
  }
  Tensor dweight = empty(weight.sizes(), weight.scalar_type());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, weight.scalar_type(), "prelu", [&] {
    scalar_t* out = dweight.mutable_data_ptr<scalar_t>();
    for (int64_t i = 0; i < slopes; ++i) {
      out[i] = static_cast<scalar_t>(total[i]);
    }
  });
  if (!dx.is_same(result)) {
    copy(dx, result);
  }
  return {result, dweight};
}

}  // namespace fastact
