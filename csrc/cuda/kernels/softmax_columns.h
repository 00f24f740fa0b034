// Softmax and log_softmax of [outer, length, inner] along `length`, without transposing: a thread
// has neighbouring columns, and eight of them share their length. What fits stays in registers, so
// that it is read once; else it is read twice.
#pragma once

#include "cuda/kernels/softmax.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

constexpr int kTileColumns = 32;  // threads side by side
constexpr int kTileRows = 8;      // that share a column
constexpr int kKeptElements = 16;

// Where a thread begins, and whether there is something for it. All of a block take part in its
// sums.
template <int kCount>
struct ColumnTile {
  int x, y;
  int64_t column;
  int64_t at;  // of the first element
  bool active;

  __device__ __forceinline__ ColumnTile(int64_t length, int64_t inner, unsigned tiles)
      : x(static_cast<int>(threadIdx.x)), y(static_cast<int>(threadIdx.y)) {
    const unsigned outer = blockIdx.x / tiles;
    column = (int64_t{blockIdx.x - outer * tiles} * kTileColumns + x) * kCount;
    at = outer * length * inner + column;
    active = column < inner;
  }
};

// Over the threads that share a column, in all of them.
template <class Operation, int kCount, class C>
__device__ __forceinline__ void reduce_tile(C (&v)[kCount], int x, int y) {
  FASTACT_SHARED(C, all, (kTileRows * kTileColumns * kCount));
  __syncthreads();  // what an earlier one left has been read
  FASTACT_UNROLL for (int k = 0; k < kCount; ++k) all[(y * kCount + k) * kTileColumns + x] = v[k];
  __syncthreads();
  FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
    v[k] = all[k * kTileColumns + x];
    FASTACT_UNROLL for (int other = 1; other < kTileRows; ++other) {
      v[k] = Operation::apply(v[k], all[(other * kCount + k) * kTileColumns + x]);
    }
  }
}

// kKept: how many elements of a column a thread keeps, 0 where they are read again.
template <class T, int kCount, int kKept>
__global__ void __launch_bounds__(kTileColumns* kTileRows, kMinSoftmaxBlocks<T>)
    softmax_columns(const T* x, T* y, int64_t length, int64_t inner, unsigned tiles,
                    compute_t<T> scale, bool log) {
  using C = compute_t<T>;
  using V = Values<T, kCount>;
  const ColumnTile<kCount> tile(length, inner, tiles);
  const int64_t end = tile.active ? length : 0;
  const auto exponents = [&](int64_t d) {
    V z = V::load(x + tile.at + d * inner);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) z.at[k] = z.at[k] * scale;
    return z;
  };
  C largest[kCount];
  C sum[kCount];
  V kept[kKept > 0 ? kKept : 1];
  FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
    largest[k] = Max::identity<C>();
    sum[k] = 0;
  }
  if constexpr (kKept > 0) {
    FASTACT_UNROLL for (int i = 0; i < kKept; ++i) {
      const int64_t d = tile.y + i * kTileRows;
      if (d >= end) continue;
      kept[i] = exponents(d);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
        largest[k] = max(largest[k], kept[i].at[k]);
      }
    }
    reduce_tile<Max>(largest, tile.x, tile.y);
    FASTACT_UNROLL for (int i = 0; i < kKept; ++i) {
      if (tile.y + i * kTileRows >= end) continue;
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) sum[k] += exp(kept[i].at[k] - largest[k]);
    }
  } else {
    OnlineSum<C> own[kCount];
    for (int64_t d = tile.y; d < end; d += kTileRows) {
      const V z = exponents(d);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) own[k].add(Values<C, 1>{{z.at[k]}});
    }
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) largest[k] = own[k].largest;
    reduce_tile<Max>(largest, tile.x, tile.y);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) sum[k] = own[k].sum_at(largest[k]);
  }
  reduce_tile<Sum>(sum, tile.x, tile.y);
  FASTACT_UNROLL for (int k = 0; k < kCount; ++k) sum[k] = of_sum(sum[k], log);
  const auto finish = [&](V z, int64_t d) {
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      z.at[k] = softmax_of(z.at[k], largest[k], sum[k], log);
    }
    z.store(y + tile.at + d * inner);
  };
  if constexpr (kKept > 0) {
    FASTACT_UNROLL for (int i = 0; i < kKept; ++i) {
      const int64_t d = tile.y + i * kTileRows;
      if (d < end) finish(kept[i], d);
    }
  } else {
    for (int64_t d = tile.y; d < end; d += kTileRows) finish(exponents(d), d);
  }
}

template <class T, int kCount, int kKept>
__global__ void __launch_bounds__(kTileColumns* kTileRows, kMinSoftmaxBlocks<T>)
    softmax_columns_backward(const T* grad, const T* y, T* dx, int64_t length, int64_t inner,
                             unsigned tiles, compute_t<T> scale, bool log) {
  using C = compute_t<T>;
  using V = Values<T, kCount>;
  const ColumnTile<kCount> tile(length, inner, tiles);
  const int64_t end = tile.active ? length : 0;
  C sum[kCount] = {};
  V g[kKept > 0 ? kKept : 1];
  V v[kKept > 0 ? kKept : 1];
  const auto add = [&](const V& g, const V& v) {
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) sum[k] += log ? g.at[k] : g.at[k] * v.at[k];
  };
  const auto finish = [&](V g, const V& v, int64_t d) {
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      g.at[k] = softmax_gradient(g.at[k], v.at[k], sum[k], scale, log);
    }
    g.store(dx + tile.at + d * inner);
  };
  if constexpr (kKept > 0) {
    FASTACT_UNROLL for (int i = 0; i < kKept; ++i) {
      const int64_t d = tile.y + i * kTileRows;
      if (d >= end) continue;
      g[i] = V::load(grad + tile.at + d * inner);
      v[i] = V::load(y + tile.at + d * inner);
      add(g[i], v[i]);
    }
    reduce_tile<Sum>(sum, tile.x, tile.y);
    FASTACT_UNROLL for (int i = 0; i < kKept; ++i) {
      const int64_t d = tile.y + i * kTileRows;
      if (d < end) finish(g[i], v[i], d);
    }
  } else {
    for (int64_t d = tile.y; d < end; d += kTileRows) {
      add(V::load(grad + tile.at + d * inner), V::load(y + tile.at + d * inner));
    }
    reduce_tile<Sum>(sum, tile.x, tile.y);
    for (int64_t d = tile.y; d < end; d += kTileRows) {
      finish(V::load(grad + tile.at + d * inner), V::load(y + tile.at + d * inner), d);
    }
  }
}

// f(neighbours a thread, elements it keeps).
template <class T, class F>
void with_column_shape(bool wide, int64_t length, const F& f) {
  constexpr int kKept = kKeptElements / kLanes<T>;
  const std::integral_constant<int, 0> none;
  const std::integral_constant<int, kKept> kept;
  const std::integral_constant<int, kLanes<T>> lanes;
  const std::integral_constant<int, 1> one;
  const bool fits = length <= kKept * kTileRows;
  if (wide) {
    fits ? f(lanes, kept) : f(lanes, none);
  } else {
    fits ? f(one, kept) : f(one, none);
  }
}

inline unsigned column_tiles(int64_t inner, int count) {
  return static_cast<unsigned>((inner + kTileColumns * count - 1) / (kTileColumns * count));
}

// outer * (inner / 32) must be less than 2^31.
template <class T>
void softmax_along(const T* x, T* y, int64_t outer, int64_t length, int64_t inner,
                   compute_t<T> scale, bool log, cudaStream_t stream) {
  if (outer * length * inner == 0) return;
  const bool wide = inner % kLanes<T> == 0 && is_aligned(x) && is_aligned(y);
  with_column_shape<T>(wide, length, [&](auto count, auto kept) {
    constexpr int kCount = decltype(count)::value;
    const unsigned tiles = column_tiles(inner, kCount);
    launch(softmax_columns<T, kCount, decltype(kept)::value>,
           dim3(static_cast<unsigned>(outer * tiles)), dim3(kTileColumns, kTileRows), stream, x, y,
           length, inner, tiles, scale, log);
  });
}

template <class T>
void softmax_along_backward(const T* grad, const T* y, T* dx, int64_t outer, int64_t length,
                            int64_t inner, compute_t<T> scale, bool log, cudaStream_t stream) {
  if (outer * length * inner == 0) return;
  const bool wide = inner % kLanes<T> == 0 && is_aligned(grad) && is_aligned(y) && is_aligned(dx);
  with_column_shape<T>(wide, length, [&](auto count, auto kept) {
    constexpr int kCount = decltype(count)::value;
    const unsigned tiles = column_tiles(inner, kCount);
    launch(softmax_columns_backward<T, kCount, decltype(kept)::value>,
           dim3(static_cast<unsigned>(outer * tiles)), dim3(kTileColumns, kTileRows), stream, grad,
           y, dx, length, inner, tiles, scale, log);
  });
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
