// Softmax and log_softmax along rows of contiguous elements, with masks, and their gradients. A row
// stays in registers, so that it is read once; one that is too long for them is read twice, its
// maximum and sum formed together (online). Sums have an order that depends on the length alone.
#pragma once

#include "cuda/kernels/for_each.h"
#include "cuda/kernels/reduction.h"
#include "cuda/launches.h"
#include "math/exp.h"
#include "math/log.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Which row of a mask belongs to a row of what it masks: the dimensions before the last, the inner
// ones first. Strides are in elements, 0 where the mask is broadcast; its rows are contiguous.
struct SoftmaxMask {
  static constexpr int kMaxDims = kMaxMaskDims;
  MaskKind kind = MaskKind::kNone;
  const void* data = nullptr;  // T, or a byte an element
  int dims = 0;
  int64_t sizes[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};

  __device__ __forceinline__ int64_t offset(int64_t row) const {
    int64_t at = 0;
    for (int d = 0; d < dims; ++d) {
      const int64_t outer = divide(row, sizes[d]);
      at += (row - outer * sizes[d]) * strides[d];
      row = outer;
    }
    return at;
  }
  // Whether every row begins where an access of `lanes` elements may.
  bool is_wide(int lanes, int bytes) const {
    bool wide = reinterpret_cast<uintptr_t>(data) % (lanes * bytes) == 0;
    for (int d = 0; d < dims; ++d) wide = wide && strides[d] % lanes == 0;
    return wide;
  }
};

// A causal mask's matrices have sizes[0] rows, of which row i takes its first i + 1 elements.
template <class T>
struct SoftmaxArguments {
  int64_t length;
  compute_t<T> scale;
  bool log;
  SoftmaxMask mask;
};

// Bytes of a boolean mask, by one access.
template <int kCount>
struct Flags {
  uint8_t at[kCount];

  static __device__ __forceinline__ Flags load(const uint8_t* p) {
    using Word =
        std::conditional_t<kCount == 1, uint8_t,
                           std::conditional_t<kCount == 2, uint16_t,
                                              std::conditional_t<kCount == 4, uint32_t, uint64_t>>>;
    const Word word = *reinterpret_cast<const Word*>(p);
    Flags f;
    memcpy(f.at, &word, sizeof word);
    return f;
  }
};

// One row under its mask.
template <class T>
struct MaskedRow {
  const SoftmaxArguments<T>& a;
  int64_t taken;  // elements that are read
  int64_t mask_at;

  __device__ __forceinline__ MaskedRow(const SoftmaxArguments<T>& a, int64_t row)
      : a(a), taken(a.length), mask_at(0) {
    if (a.mask.kind == MaskKind::kCausal) {
      const int64_t size = a.mask.sizes[0];
      const int64_t reach = row - divide(row, size) * size + 1;
      taken = reach < taken ? reach : taken;
    } else if (a.mask.kind != MaskKind::kNone) {
      mask_at = a.mask.offset(row);
    }
  }

  // The exponents of kCount elements, -infinity where they are masked.
  template <int kCount>
  __device__ __forceinline__ Values<T, kCount> exponents(const T* x, int64_t column) const {
    using C = compute_t<T>;
    Values<T, kCount> z;
    if (column >= taken) {
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) z.at[k] = Max::identity<C>();
      return z;
    }
    z = Values<T, kCount>::load(x + column);
    if (a.mask.kind == MaskKind::kAdded) {
      const T* const mask = static_cast<const T*>(a.mask.data) + mask_at;
      const auto m = Values<T, kCount>::load(mask + column);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) z.at[k] = fma(z.at[k], a.scale, m.at[k]);
      return z;
    }
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) z.at[k] = z.at[k] * a.scale;
    if (a.mask.kind == MaskKind::kBoolean) {
      const uint8_t* const mask = static_cast<const uint8_t*>(a.mask.data) + mask_at;
      const auto keep = Flags<kCount>::load(mask + column);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
        z.at[k] = keep.at[k] ? z.at[k] : Max::identity<C>();
      }
    }
    if (a.mask.kind == MaskKind::kCausal) {
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
        z.at[k] = column + k < taken ? z.at[k] : Max::identity<C>();
      }
    }
    return z;
  }

  // Sets to 0 what takes no part: a result above the diagonal, and, of gradients, also where a
  // boolean mask is false.
  template <int kCount>
  __device__ __forceinline__ void clear(Values<T, kCount>* v, int64_t column, bool gradient) const {
    if (a.mask.kind == MaskKind::kCausal) {
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
        if (column + k >= taken) v->at[k] = 0;
      }
    } else if (gradient && a.mask.kind == MaskKind::kBoolean) {
      const uint8_t* const mask = static_cast<const uint8_t*>(a.mask.data) + mask_at;
      const auto keep = Flags<kCount>::load(mask + column);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
        if (!keep.at[k]) v->at[k] = 0;
      }
    }
  }
};

// The result of one element from its exponent, the largest of its row, and either the inverse or
// the logarithm of its sum.
template <class C>
__device__ __forceinline__ C softmax_of(C z, C largest, C of_sum, bool log) {
  return log ? (z - largest) - of_sum : exp(z - largest) * of_sum;
}
template <class C>
__device__ __forceinline__ C of_sum(C sum, bool log) {
  return log ? library::log(sum) : C(1) / sum;
}
template <class C>
__device__ __forceinline__ C softmax_gradient(C grad, C y, C sum, C scale, bool log) {
  return log ? fnma(exp(y), sum, grad) : scale * y * (grad - sum);
}

// A maximum, and the sum of exponentials relative to it.
template <class C>
struct OnlineSum {
  C largest = Max::identity<C>();
  C sum = 0;

  // Relative to a larger maximum; -infinity counts as 0, so that nothing becomes NaN.
  __device__ __forceinline__ C sum_at(C other) const {
    return largest == Max::identity<C>() ? sum : sum * exp(largest - other);
  }
  template <class V>
  __device__ __forceinline__ void add(const V& z) {
    constexpr int kCount = sizeof(z.at) / sizeof(C);
    C top = largest;
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) top = max(top, z.at[k]);
    if (top == Max::identity<C>()) return;
    sum = sum_at(top);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) sum += exp(z.at[k] - top);
    largest = top;
  }
};

// The least number of blocks of a multiprocessor, for __launch_bounds__. Told nothing (0),
// ptxas 13.0 spills float64 kernels, and on sm_100 long rows of every type; told 1, it does not.
template <class C>
constexpr int kMinSoftmaxBlocks = sizeof(C) == sizeof(double) ? 1 : 0;

// ---- rows in registers: kThreads threads hold kAccesses accesses each ---------------------------

// A warp has its row to itself; blocks of four of them.
template <int kThreads>
constexpr int kRowsOfBlock = kThreads == kWarp ? 4 : 1;

template <class T, int kCount, int kThreads, int kAccesses>
__global__ void __launch_bounds__(kThreads* kRowsOfBlock<kThreads>, kMinSoftmaxBlocks<T>)
    softmax_rows(const T* x, T* y, int64_t rows, SoftmaxArguments<T> a) {
  using C = compute_t<T>;
  constexpr int kWarps = kThreads / kWarp;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = int64_t{blockIdx.x} * kRowsOfBlock<kThreads> + static_cast<int>(threadIdx.y);
  if (row >= rows) return;  // the whole warp, which has its row to itself
  const MaskedRow<T> masked(a, row);
  x += row * a.length;
  y += row * a.length;
  Values<T, kCount> z[kAccesses];
  C largest = Max::identity<C>();
  FASTACT_UNROLL for (int i = 0; i < kAccesses; ++i) {
    z[i] = masked.template exponents<kCount>(x, (i * kThreads + thread) * kCount);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) largest = max(largest, z[i].at[k]);
  }
  largest = reduce_block<Max, kWarps>(largest);
  C sum = 0;
  FASTACT_UNROLL for (int i = 0; i < kAccesses; ++i) {
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      const C e = exp(z[i].at[k] - largest);
      sum += e;
      z[i].at[k] = a.log ? z[i].at[k] - largest : e;
    }
  }
  const C total = of_sum(reduce_block<Sum, kWarps>(sum), a.log);
  FASTACT_UNROLL for (int i = 0; i < kAccesses; ++i) {
    const int column = (i * kThreads + thread) * kCount;
    if (column >= a.length) continue;
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      z[i].at[k] = a.log ? z[i].at[k] - total : z[i].at[k] * total;
    }
    masked.clear(&z[i], column, /*gradient=*/false);
    z[i].store(y + column);
  }
}

template <class T, int kCount, int kThreads, int kAccesses>
__global__ void __launch_bounds__(kThreads* kRowsOfBlock<kThreads>, kMinSoftmaxBlocks<T>)
    softmax_rows_backward(const T* grad, const T* y, T* dx, int64_t rows, SoftmaxArguments<T> a) {
  using C = compute_t<T>;
  using V = Values<T, kCount>;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = int64_t{blockIdx.x} * kRowsOfBlock<kThreads> + static_cast<int>(threadIdx.y);
  if (row >= rows) return;
  const MaskedRow<T> masked(a, row);
  grad += row * a.length;
  y += row * a.length;
  dx += row * a.length;
  Elements<T, kCount> g[kAccesses];  // as they lie, since there are two of them
  Elements<T, kCount> v[kAccesses];
  C sum = 0;
  FASTACT_UNROLL for (int i = 0; i < kAccesses; ++i) {
    const int column = (i * kThreads + thread) * kCount;
    if (column >= a.length) continue;
    g[i] = Elements<T, kCount>::load(grad + column);
    v[i] = Elements<T, kCount>::load(y + column);
    const V wide_g = V::of(g[i]);
    const V wide_v = V::of(v[i]);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      sum += a.log ? wide_g.at[k] : wide_g.at[k] * wide_v.at[k];
    }
  }
  sum = reduce_block<Sum, kThreads / kWarp>(sum);
  FASTACT_UNROLL for (int i = 0; i < kAccesses; ++i) {
    const int column = (i * kThreads + thread) * kCount;
    if (column >= a.length) continue;
    V result = V::of(g[i]);
    const V wide_v = V::of(v[i]);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      result.at[k] = softmax_gradient(result.at[k], wide_v.at[k], sum, a.scale, a.log);
    }
    masked.clear(&result, column, /*gradient=*/true);
    result.store(dx + column);
  }
}

// ---- longer rows, read twice -------------------------------------------------------------------

constexpr int kLongThreads = 512;

template <class T, int kCount>
__global__ void __launch_bounds__(kLongThreads, 1)
    softmax_long_rows(const T* x, T* y, SoftmaxArguments<T> a) {
  using C = compute_t<T>;
  const int64_t row = blockIdx.x;
  const MaskedRow<T> masked(a, row);
  x += row * a.length;
  y += row * a.length;
  const int64_t first = static_cast<int>(threadIdx.x) * kCount;
  OnlineSum<C> own;
  for (int64_t i = first; i < masked.taken; i += kLongThreads * kCount) {
    own.add(masked.template exponents<kCount>(x, i));
  }
  const C largest = reduce_block<Max, kLongThreads / kWarp>(own.largest);
  const C sum = reduce_block<Sum, kLongThreads / kWarp>(own.sum_at(largest));
  const C total = of_sum(sum, a.log);
  for (int64_t i = first; i < a.length; i += kLongThreads * kCount) {
    auto z = masked.template exponents<kCount>(x, i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      z.at[k] = softmax_of(z.at[k], largest, total, a.log);
    }
    masked.clear(&z, i, /*gradient=*/false);
    z.store(y + i);
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kLongThreads, 1)
    softmax_long_rows_backward(const T* grad, const T* y, T* dx, SoftmaxArguments<T> a) {
  using C = compute_t<T>;
  using V = Values<T, kCount>;
  const int64_t row = blockIdx.x;
  const MaskedRow<T> masked(a, row);
  grad += row * a.length;
  y += row * a.length;
  dx += row * a.length;
  const int64_t first = static_cast<int>(threadIdx.x) * kCount;
  C sum = 0;
  for (int64_t i = first; i < a.length; i += kLongThreads * kCount) {
    const V g = V::load(grad + i);
    if (a.log) {
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) sum += g.at[k];
    } else {
      const V v = V::load(y + i);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) sum += g.at[k] * v.at[k];
    }
  }
  sum = reduce_block<Sum, kLongThreads / kWarp>(sum);
  for (int64_t i = first; i < a.length; i += kLongThreads * kCount) {
    V g = V::load(grad + i);
    const V v = V::load(y + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      g.at[k] = softmax_gradient(g.at[k], v.at[k], sum, a.scale, a.log);
    }
    masked.clear(&g, i, /*gradient=*/true);
    g.store(dx + i);
  }
}

// ---- the choice --------------------------------------------------------------------------------

// f(threads, elements that each keeps) for the first shape that holds a row, zeros if none does. Of
// 512 threads each has 128 registers: enough for 32 floats, 16 doubles or pairs, 8 pairs of
// doubles.
template <int kOperands, class T, class F>
void with_row_shape(int64_t length, const F& f) {
  using std::integral_constant;
  constexpr integral_constant<int, kWarp> warp;
  constexpr integral_constant<int, 256> some;
  constexpr integral_constant<int, 512> all;
  constexpr integral_constant<int, 8> few;
  constexpr integral_constant<int, 16> many;
  constexpr int kBytes = kOperands * sizeof(compute_t<T>);
  constexpr integral_constant<int, 128 / kBytes> most;
  if (length <= warp * few) return f(warp, few);
  if (length <= warp * many) return f(warp, many);
  if (length <= some * many) return f(some, many);
  if (length <= all * most) return f(all, most);
  f(integral_constant<int, 0>(), integral_constant<int, 0>());
}

template <class T, int kCount>
void softmax_rows_by(const T* x, T* y, int64_t rows, const SoftmaxArguments<T>& a,
                     cudaStream_t stream) {
  with_row_shape<1, T>(a.length, [&](auto threads, auto elements) {
    constexpr int kThreads = decltype(threads)::value;
    if constexpr (kThreads == 0) {
      launch(softmax_long_rows<T, kCount>, dim3(static_cast<unsigned>(rows)), dim3(kLongThreads),
             stream, x, y, a);
    } else {
      constexpr int kRows = kRowsOfBlock<kThreads>;
      launch(softmax_rows<T, kCount, kThreads, decltype(elements)::value / kCount>,
             dim3(static_cast<unsigned>((rows + kRows - 1) / kRows)), dim3(kThreads, kRows), stream,
             x, y, rows, a);
    }
  });
}

template <class T, int kCount>
void softmax_rows_backward_by(const T* grad, const T* y, T* dx, int64_t rows,
                              const SoftmaxArguments<T>& a, cudaStream_t stream) {
  with_row_shape<2, T>(a.length, [&](auto threads, auto elements) {
    constexpr int kThreads = decltype(threads)::value;
    if constexpr (kThreads == 0) {
      launch(softmax_long_rows_backward<T, kCount>, dim3(static_cast<unsigned>(rows)),
             dim3(kLongThreads), stream, grad, y, dx, a);
    } else {
      constexpr int kRows = kRowsOfBlock<kThreads>;
      launch(softmax_rows_backward<T, kCount, kThreads, decltype(elements)::value / kCount>,
             dim3(static_cast<unsigned>((rows + kRows - 1) / kRows)), dim3(kThreads, kRows), stream,
             grad, y, dx, rows, a);
    }
  });
}

// Whether rows may be read by whole accesses.
template <class T>
bool has_wide_rows(const SoftmaxArguments<T>& a) {
  constexpr int kCount = kLanes<T>;
  const bool mask = a.mask.kind == MaskKind::kAdded     ? a.mask.is_wide(kCount, sizeof(T))
                    : a.mask.kind == MaskKind::kBoolean ? a.mask.is_wide(kCount, 1)
                                                        : true;
  return a.length % kCount == 0 && mask;
}

// Rows of `a.length` elements; fewer than 2^31 rows.
template <class T>
void softmax(const T* x, T* y, int64_t rows, const SoftmaxArguments<T>& a, cudaStream_t stream) {
  if (rows == 0 || a.length == 0) return;
  if (has_wide_rows(a) && is_aligned(x) && is_aligned(y)) {
    softmax_rows_by<T, kLanes<T>>(x, y, rows, a, stream);
  } else {
    softmax_rows_by<T, 1>(x, y, rows, a, stream);
  }
}

template <class T>
void softmax_backward(const T* grad, const T* y, T* dx, int64_t rows, const SoftmaxArguments<T>& a,
                      cudaStream_t stream) {
  if (rows == 0 || a.length == 0) return;
  if (has_wide_rows(a) && is_aligned(grad) && is_aligned(y) && is_aligned(dx)) {
    softmax_rows_backward_by<T, kLanes<T>>(grad, y, dx, rows, a, stream);
  } else {
    softmax_rows_backward_by<T, 1>(grad, y, dx, rows, a, stream);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
