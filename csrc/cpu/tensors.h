// The elements of tensors as kernels read them: copies, contiguous ones, rows of a matrix.
#pragma once

#include <c10/util/MaybeOwned.h>

#include "cpu/coverage.h"
#include "cpu/gemm/gemm.h"

namespace fastact {

// n elements of element_size bytes; strides in bytes.
void copy_elements(int64_t element_size, const char* from, int64_t from_stride, char* to,
                   int64_t to_stride, int64_t n);

// The elements of `from` into `to`, of one dtype and shape, on fastact's threads: at::copy_ and
// contiguous() hang in a forked child (see parallel.h).
void copy(const Tensor& from, const Tensor& to);

// `t` itself where it is contiguous, else a contiguous copy.
Tensor contiguous(const Tensor& t);

inline at::ScalarType compute_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// Contiguous elements: t's own where it has them. Borrowed, since counting its owners up and down
// takes 10 ns of a call's 1,000.
using BorrowedTensor = c10::MaybeOwned<Tensor>;

inline BorrowedTensor borrow_contiguous(const Tensor& t) {
  return t.is_contiguous() ? BorrowedTensor::borrowed(t) : BorrowedTensor::owned(contiguous(t));
}

// The same in the compute type.
BorrowedTensor widened(const Tensor& t);

// numbers of the compute type as a tensor of `dtype`.
Tensor narrowed(const void* numbers, at::IntArrayRef sizes, at::ScalarType dtype);

// The rows of a tensor of any rank, which outlives this, as a matrix that gemm() reads as it lies,
// else as a copy.
struct MatrixView {
  BorrowedTensor tensor;
  GemmOperand operand;
  int64_t rows;

  explicit MatrixView(const Tensor& t)
      : tensor(t.dim() == 2 && (t.stride(0) == 1 || t.stride(1) == 1) ? BorrowedTensor::borrowed(t)
                                                                      : borrow_contiguous(t)) {
    const int64_t columns = t.size(-1);
    rows = columns ? t.numel() / columns : rows_of_empty(t);
    operand = {tensor->const_data_ptr(), t.dim() == 2 ? tensor->stride(0) : columns,
               t.dim() == 2 ? tensor->stride(1) : 1};
    // A single row or column has a stride that says nothing.
    if (rows == 1) {
      operand.row_stride = columns;
    }
    if (columns == 1 && operand.row_stride != 1) {
      operand.column_stride = 1;
    }
  }

  GemmOperand transposed() const {
    return {operand.data, operand.column_stride, operand.row_stride};
  }

 private:
  static int64_t rows_of_empty(const Tensor& t) {
    int64_t rows = 1;
    for (int64_t i = 0; i < t.dim() - 1; ++i) {
      rows *= t.size(i);
    }
    return rows;
  }
};

}  // namespace fastact
