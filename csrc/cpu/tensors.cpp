#include "cpu/tensors.h"

#include <ATen/TensorIterator.h>

#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace fastact {
namespace {

template <int Bytes>
struct Word {
  char bytes[Bytes];
};

template <int Bytes>
void copy_words(const char* from, int64_t from_stride, char* to, int64_t to_stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    *reinterpret_cast<Word<Bytes>*>(to + i * to_stride) =
        *reinterpret_cast<const Word<Bytes>*>(from + i * from_stride);
  }
}

}  // namespace

void copy_elements(int64_t element_size, const char* from, int64_t from_stride, char* to,
                   int64_t to_stride, int64_t n) {
  switch (element_size) {
    case 1:
      return copy_words<1>(from, from_stride, to, to_stride, n);
    case 2:
      return copy_words<2>(from, from_stride, to, to_stride, n);
    case 4:
      return copy_words<4>(from, from_stride, to, to_stride, n);
    default:
      return copy_words<8>(from, from_stride, to, to_stride, n);
  }
}

void copy(const Tensor& from, const Tensor& to) {
  constexpr int64_t kGrain = 1 << 15;  // a copy has next to no arithmetic to share out
  const int64_t size = from.element_size();
  const auto iterator =
      at::TensorIteratorConfig().resize_outputs(false).add_output(to).add_const_input(from).build();
  const auto loop = [&](char** data, const int64_t* strides, int64_t n, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      copy_elements(size, data[1] + row * strides[3], strides[1], data[0] + row * strides[2],
                    strides[0], n);
    }
  };
  parallel_for(iterator.numel(), kGrain,
               [&](int64_t begin, int64_t end) { iterator.serial_for_each(loop, {begin, end}); });
}

Tensor contiguous(const Tensor& t) {
  if (t.is_contiguous()) {
    return t;
  }
  Tensor result = empty(t.sizes(), t.scalar_type());
  copy(t, result);
  return result;
}

BorrowedTensor widened(const Tensor& t) {
  const at::ScalarType dtype = compute_dtype(t.scalar_type());
  BorrowedTensor row = borrow_contiguous(t);
  if (dtype == t.scalar_type()) {
    return row;
  }
  Tensor result = empty(t.sizes(), dtype);
  kernels().gemm[table_dtype(t.scalar_type())].widen(row->const_data_ptr(),
                                                     result.mutable_data_ptr(), t.numel());
  return BorrowedTensor::owned(std::move(result));
}

Tensor narrowed(const void* numbers, at::IntArrayRef sizes, at::ScalarType dtype) {
  Tensor result = empty(sizes, dtype);
  const int64_t n = result.numel();
  kernels().gemm[table_dtype(dtype)].store_rows(numbers, n, 1, n, result.mutable_data_ptr(), n);
  return result;
}

}  // namespace fastact
