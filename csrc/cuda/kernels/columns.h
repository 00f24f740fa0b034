// Kernels over a matrix that also sum its columns: the gradients of a bias, and of slopes that
// belong to columns. Blocks sum kRowsOfBlock rows or a multiple, by the shape alone, and a second
// launch adds these parts up: the same bits on every device.
#pragma once

#include "cuda/kernels/for_each.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

constexpr int kColumnThreads = 32;  // side by side
constexpr int kRowThreads = 8;
constexpr int64_t kMinRowsOfBlock = 64;
constexpr int64_t kMaxParts = 256;

inline int64_t rows_of_block(int64_t rows) {
  const int64_t needed = (rows + kMaxParts - 1) / kMaxParts;
  return needed < kMinRowsOfBlock ? kMinRowsOfBlock
                                  : (needed + kRowThreads - 1) / kRowThreads * kRowThreads;
}
// How many parts the sums have; a part is a row of `columns` elements of compute_t<T>.
inline int64_t column_parts(int64_t rows) {
  return (rows + rows_of_block(rows) - 1) / rows_of_block(rows);
}

// operation.run<kCount>(row, column, sums): computes kCount neighbours and adds to their sums.
template <class T, int kCount, class Operation, class Out>
__global__ void __launch_bounds__(kColumnThreads* kRowThreads, (kMinBlocksOf<T, Operation>))
    for_each_column(Operation operation, Out* parts, int64_t rows, int64_t columns,
                    int64_t rows_of_part) {
  using C = compute_t<T>;
  FASTACT_SHARED(C, of_threads, (kRowThreads * kColumnThreads * kCount));
  const int x = static_cast<int>(threadIdx.x);
  const int y = static_cast<int>(threadIdx.y);
  const int64_t column = (int64_t{blockIdx.x} * kColumnThreads + x) * kCount;
  const int64_t first = int64_t{blockIdx.y} * rows_of_part;
  const int64_t last = first + rows_of_part < rows ? first + rows_of_part : rows;
  C sums[kCount] = {};
  if (column < columns) {
    for (int64_t row = first + y; row < last; row += kRowThreads) {
      operation.template run<kCount>(row, column, sums);
    }
  }
  // One element of all threads after the other: no two of a warp share a bank.
  FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
    of_threads[(y * kCount + k) * kColumnThreads + x] = sums[k];
  }
  __syncthreads();
  if (y != 0 || column >= columns) return;
  Values<Out, 1> total;
  FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
    C sum = sums[k];
    FASTACT_UNROLL for (int other = 1; other < kRowThreads; ++other) {
      sum += of_threads[(other * kCount + k) * kColumnThreads + x];
    }
    total.at[0] = sum;
    total.store(parts + int64_t{blockIdx.y} * columns + column + k);
  }
}

// Sums only.
template <class T>
struct SumColumns {
  static constexpr bool kManyRegisters = true;
  const T* x;
  int64_t columns;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t row, int64_t column, compute_t<T>* sums) const {
    const auto v = Values<T, kCount>::load(x + row * columns + column);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) sums[k] += v.at[k];
  }
};

template <class T, class Operation, class Out>
void launch_columns(const Operation& operation, Out* parts, int64_t rows, int64_t columns,
                    int64_t rows_of_part, bool wide, cudaStream_t stream) {
  const int64_t of_block = kColumnThreads * (wide ? kLanes<T> : 1);
  const dim3 grid(static_cast<unsigned>((columns + of_block - 1) / of_block),
                  static_cast<unsigned>((rows + rows_of_part - 1) / rows_of_part));
  const dim3 block(kColumnThreads, kRowThreads);
  if (wide) {
    launch(for_each_column<T, kLanes<T>, Operation, Out>, grid, block, stream, operation, parts,
           rows, columns, rows_of_part);
  } else {
    launch(for_each_column<T, 1, Operation, Out>, grid, block, stream, operation, parts, rows,
           columns, rows_of_part);
  }
}

// `parts` holds column_parts(rows) * columns elements. Without rows the sums are 0.
template <class T, class Operation>
void sum_columns(const Operation& operation, compute_t<T>* parts, T* sums, int64_t rows,
                 int64_t columns, bool wide, cudaStream_t stream) {
  using C = compute_t<T>;
  if (columns == 0) return;
  if (rows > 0) {
    launch_columns<T>(operation, parts, rows, columns, rows_of_block(rows), wide, stream);
  }
  const int64_t count = rows > 0 ? column_parts(rows) : 0;
  const SumColumns<C> add_up{parts, columns};
  const bool whole = columns % kLanes<C> == 0 && is_aligned(parts);
  // All parts in one block of rows, be there none.
  const int64_t of_block = kColumnThreads * (whole ? kLanes<C> : 1);
  const dim3 grid(static_cast<unsigned>((columns + of_block - 1) / of_block));
  const dim3 block(kColumnThreads, kRowThreads);
  launch(whole ? for_each_column<C, kLanes<C>, SumColumns<C>, T>
               : for_each_column<C, 1, SumColumns<C>, T>,
         grid, block, stream, add_up, sums, count, columns, count);
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
