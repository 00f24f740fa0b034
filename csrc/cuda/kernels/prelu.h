// PReLU and its two gradients. x is read as rows of contiguous elements that share one slope (or
// one row, where there is one slope in all), or as rows whose elements have one each.
#pragma once

#include "cuda/kernels/columns.h"
#include "cuda/kernels/for_each.h"
#include "cuda/kernels/reduction.h"
#include "math/activations.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Element i belongs to row i / length. Its slope is slope[row % slopes], or, where slopes are
// `along` the row, slope[i % length].
struct SlopeOf {
  int64_t length;
  int64_t slopes;
  bool along;

  // Of the first of some neighbours in one row.
  __device__ __forceinline__ int64_t index(int64_t i) const {
    if (slopes == 1) return 0;
    const int64_t row = divide(i, length);
    return along ? i - row * length : row - divide(row, slopes) * slopes;
  }
};

template <class T>
struct PreluForward {
  const T* x;
  const T* slope;
  T* y;
  SlopeOf slopes;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    auto v = Values<T, kCount>::load(x + i);
    const T* const first = slope + slopes.index(i);
    if (slopes.along) {
      const auto s = Values<T, kCount>::load(first);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) v.at[k] = Prelu::forward(v.at[k], s.at[k]);
    } else {
      const compute_t<T> s = widened(*first);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) v.at[k] = Prelu::forward(v.at[k], s);
    }
    v.store(y + i);
  }
};

template <class T>
void prelu(const T* x, const T* slope, T* y, int64_t n, SlopeOf slopes, cudaStream_t stream) {
  const bool whole_rows = slopes.slopes == 1 || slopes.length % kLanes<T> == 0;
  const bool wide =
      whole_rows && is_aligned(x) && is_aligned(y) && (!slopes.along || is_aligned(slope));
  launch_for_each<T>(PreluForward<T>{x, slope, y, slopes}, n, wide, stream);
}

// ---- slopes that belong to columns -------------------------------------------------------------

template <class T>
struct PreluColumnsBackward {
  const T* grad;
  const T* x;
  const T* slope;
  T* dx;
  int64_t columns;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t row, int64_t column, compute_t<T>* sums) const {
    const int64_t i = row * columns + column;
    auto g = Values<T, kCount>::load(grad + i);
    const auto v = Values<T, kCount>::load(x + i);
    const auto s = Values<T, kCount>::load(slope + column);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      sums[k] += Prelu::backward_slope(g.at[k], v.at[k]);
      g.at[k] = Prelu::backward_input(g.at[k], v.at[k], s.at[k]);
    }
    g.store(dx + i);
  }
};

// `parts` holds column_parts(rows) * columns elements.
template <class T>
void prelu_columns_backward(const T* grad, const T* x, const T* slope, T* dx, T* dslope,
                            compute_t<T>* parts, int64_t rows, int64_t columns,
                            cudaStream_t stream) {
  const bool wide = columns % kLanes<T> == 0 && is_aligned(grad) && is_aligned(x) &&
                    is_aligned(slope) && is_aligned(dx);
  sum_columns<T>(PreluColumnsBackward<T>{grad, x, slope, dx, columns}, parts, dslope, rows, columns,
                 wide, stream);
}

// ---- slopes that belong to rows: a warp sums a piece of a row ----------------------------------

constexpr int kPieceWarps = 8;  // a block
constexpr int kPieceAccesses = 16;
template <class T>
constexpr int kPiece = kWarp * kLanes<T> * kPieceAccesses;

template <class T>
int64_t pieces_of_row(int64_t length) {
  return (length + kPiece<T> - 1) / kPiece<T>;
}

template <class T>
__global__ void __launch_bounds__(kWarp* kPieceWarps, kMinBlocks<T>)
    prelu_pieces_backward(const T* grad, const T* x, const T* slope, T* dx, compute_t<T>* parts,
                          int64_t all_pieces, int64_t pieces, SlopeOf slopes, bool wide) {
  using C = compute_t<T>;
  constexpr int kCount = kLanes<T>;
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t piece = int64_t{blockIdx.x} * kPieceWarps + static_cast<int>(threadIdx.y);
  if (piece >= all_pieces) return;  // the whole warp
  const int64_t row = divide(piece, pieces);
  const int64_t at = (piece - row * pieces) * kPiece<T>;
  const int length =
      slopes.length - at < kPiece<T> ? static_cast<int>(slopes.length - at) : kPiece<T>;
  const int64_t first = row * slopes.length + at;
  const C s = widened(slope[row - divide(row, slopes.slopes) * slopes.slopes]);
  C sum = 0;
  const auto step = [&](auto g, auto v, int i) {
    FASTACT_UNROLL for (int k = 0; k < static_cast<int>(sizeof(g.at) / sizeof(C)); ++k) {
      sum += Prelu::backward_slope(g.at[k], v.at[k]);
      g.at[k] = Prelu::backward_input(g.at[k], v.at[k], s);
    }
    g.store(dx + first + i);
  };
  const int whole = wide ? length / kCount * kCount : 0;
  for (int i = lane * kCount; i < whole; i += kWarp * kCount) {
    step(Values<T, kCount>::load(grad + first + i), Values<T, kCount>::load(x + first + i), i);
  }
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int i = whole + lane; i < length; i += kWarp) {
    step(Values<T, 1>::load(grad + first + i), Values<T, 1>::load(x + first + i), i);
  }
  sum = reduce_warp<Sum>(sum);
  if (lane == 0) parts[piece] = sum;
}

constexpr int kSlopeThreads = 256;

// A block a slope: its parts are `pieces` neighbours of every `slopes`-th row.
template <class T>
__global__ void __launch_bounds__(kSlopeThreads)
    sum_slope_parts(const compute_t<T>* parts, T* dslope, int64_t outer, int64_t pieces) {
  using C = compute_t<T>;
  const int64_t slopes = gridDim.x;
  C sum = 0;
  for (int64_t i = threadIdx.x; i < outer * pieces; i += kSlopeThreads) {
    const int64_t row = divide(i, pieces) * slopes + blockIdx.x;
    sum += parts[row * pieces + (i - divide(i, pieces) * pieces)];
  }
  sum = reduce_block<Sum, kSlopeThreads / kWarp>(sum);
  if (threadIdx.x == 0) round_to(sum, dslope + blockIdx.x);
}

// `parts` holds rows * pieces_of_row<T>(slopes.length) elements.
template <class T>
void prelu_rows_backward(const T* grad, const T* x, const T* slope, T* dx, T* dslope,
                         compute_t<T>* parts, int64_t rows, SlopeOf slopes, cudaStream_t stream) {
  const int64_t pieces = pieces_of_row<T>(slopes.length);
  const bool wide = (rows == 1 || slopes.length % kLanes<T> == 0) && is_aligned(grad) &&
                    is_aligned(x) && is_aligned(dx);
  const int64_t all = rows * pieces;
  if (all > 0) {
    launch(prelu_pieces_backward<T>,
           dim3(static_cast<unsigned>((all + kPieceWarps - 1) / kPieceWarps)),
           dim3(kWarp, kPieceWarps), stream, grad, x, slope, dx, parts, all, pieces, slopes, wide);
  }
  if (slopes.slopes > 0) {
    launch(sum_slope_parts<T>, dim3(static_cast<unsigned>(slopes.slopes)), dim3(kSlopeThreads),
           stream, static_cast<const compute_t<T>*>(parts), dslope,
           all > 0 ? rows / slopes.slopes : 0, pieces);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
