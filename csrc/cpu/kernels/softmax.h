// Softmax along rows of contiguous elements, and along columns without transposing. Sums are formed
// in a fixed order: a row's bits do not depend on the batch it stands in or on the threads.
#pragma once

#include <type_traits>

#include "cpu/kernels/kernel_table.h"
#include "cpu/kernels/loops.h"
#include "math/compute_type.h"
#include "math/exp.h"
#include "math/log.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class T, int U>
using SoftmaxGroup = Pack<Vec<compute_t<T>>, U>;

template <class C>
constexpr C negative_infinity() {
  return -static_cast<C>(__builtin_inf());
}

// Read from entry N - n on, 0 for n lanes and -inf behind them.
template <class C, int N>
struct Behind {
  C values[2 * N];
  constexpr Behind() : values() {
    for (int i = 0; i < N; ++i) {
      values[i] = 0;
      values[N + i] = negative_infinity<C>();
    }
  }
};
template <class C, int N>
alignas(64) constexpr Behind<C, N> kBehind;

// What stands between x and the exponent z.
enum class Scores { kPlain, kScaled, kMasked, kSelected };

// z of one group, z = x, scale x, scale x + mask, or scale x where mask is 0 and else mask (-inf).
template <Scores kScores, class V, class T>
FASTACT_FN V scores(const T* x, const T* mask, V scale, int count) {
  using C = typename V::scalar;
  const V v = load_lanes<V>(x, count);
  if constexpr (kScores == Scores::kPlain) {
    return v;
  } else if constexpr (kScores == Scores::kScaled) {
    return v * scale;
  } else if constexpr (kScores == Scores::kMasked) {
    return fma(v, scale, load_lanes<V>(mask, count));
  } else {
    const V m = load_lanes<V>(mask, count);
    return select(m < V(C(0)), m, v * scale);
  }
}

// f(group, i, count) for all n elements in order: whole groups of four registers, then the rest in
// as few registers as hold it. `group` is a Pack, of which the type alone counts.
template <class T, class F>
FASTACT_FN void for_each_group(int64_t n, const F& f) {
  using V = SoftmaxGroup<T, 4>;
  constexpr int kLanes = V::size / 4;
  int64_t i = 0;
  for (; i + V::size <= n; i += V::size) {
    f(V(), i, V::size);
  }
  const int rest = static_cast<int>(n - i);
  switch ((rest + kLanes - 1) / kLanes) {
    case 1:
      return f(SoftmaxGroup<T, 1>(), i, rest);
    case 2:
      return f(SoftmaxGroup<T, 2>(), i, rest);
    case 3:
      return f(SoftmaxGroup<T, 3>(), i, rest);
    case 4:
      return f(V(), i, rest);
    default:
      return;
  }
}

// The first registers of `all`, each taken together with one of `some`.
template <class V, int U, int N, class F>
FASTACT_FN void accumulate(Pack<V, U>* all, Pack<V, N> some, const F& f) {
  FASTACT_UNROLL for (int u = 0; u < N; ++u) all->part[u] = f(all->part[u], some.part[u]);
}

template <class C>
struct RowSum {
  C largest;
  C total;  // of exp(z - largest)
};

// The sum of a row. store(e, i, count) gets its exponentials.
// max() returns its second operand where either is NaN, so a NaN may be lost here; it then makes
// the sum NaN.
template <class T, Scores kScores, class F>
FASTACT_FN RowSum<compute_t<T>> sum_row(const T* x, const T* mask, const SoftmaxArguments& a,
                                        const F& store) {
  using C = compute_t<T>;
  using All = SoftmaxGroup<T, 4>;
  const C scale = static_cast<C>(a.scale);
  const auto z = [&](auto group, int64_t i, int count) FASTACT_LAMBDA {
    using V = decltype(group);
    const V v = scores<kScores>(x + i, mask + i, V(scale), count);
    // The lanes behind the row's end, where z is 0, must not count.
    return count == V::size ? v : v + V::load(kBehind<C, V::size>.values + V::size - count);
  };
  All top(negative_infinity<C>());
  for_each_group<T>(a.length, [&](auto group, int64_t i, int count) FASTACT_LAMBDA {
    accumulate(&top, z(group, i, count), [](auto p, auto q) FASTACT_LAMBDA { return max(p, q); });
  });
  const C largest = horizontal_max(top);
  All sum(C(0));
  for_each_group<T>(a.length, [&](auto group, int64_t i, int count) FASTACT_LAMBDA {
    const auto e = exp(z(group, i, count) - decltype(group)(largest));
    accumulate(&sum, e, [](auto p, auto q) FASTACT_LAMBDA { return p + q; });
    store(e, i, count);
  });
  return {largest, horizontal_sum(sum)};
}

// The exponentials lie in y where they fit, else in `scratch`; those of the last group in `rest`,
// whole registers, because what a masked store wrote would have to reach the cache before it can be
// loaded: rows of 160 take 12.1 cycles per 16 elements, and 13 through y (Zen 5, float32).
template <class T, Scores kScores>
FASTACT_FN void softmax_row(const T* x, const T* mask, T* y, const SoftmaxArguments& a,
                            compute_t<T>* scratch) {
  using C = compute_t<T>;
  const auto exponentials = [&] {
    if constexpr (sizeof(T) == sizeof(C)) {
      return y;
    } else {
      return scratch;
    }
  }();
  alignas(64) C rest[SoftmaxGroup<T, 4>::size];
  const RowSum<C> row =
      sum_row<T, kScores>(x, mask, a, [&](auto e, int64_t i, int count) FASTACT_LAMBDA {
        e.store(count == decltype(e)::size ? exponentials + i : rest);
      });
  const C inverse = C(1) / row.total;
  for_each_group<T>(a.length, [&](auto group, int64_t i, int count) FASTACT_LAMBDA {
    using V = decltype(group);
    const V e = V::load(count == V::size ? exponentials + i : rest);
    store_lanes(e * V(inverse), y + i, count);
  });
}

// Several rows, of which the logarithms are taken together: one alone takes some 90 cycles, which
// made it 14.9 cycles per 16 elements in rows of 256 instead of 10.1 (Zen 5, float32).
template <class T, Scores kScores>
FASTACT_FN void log_softmax_rows(const T* x, const T* mask, int64_t mask_stride, T* y, int rows,
                                 const SoftmaxArguments& a) {
  using C = compute_t<T>;
  using Lanes = Vec<C>;
  alignas(64) C largest[Lanes::size] = {};
  alignas(64) C total[Lanes::size] = {};
  for (int r = 0; r < rows; ++r) {
    const RowSum<C> row = sum_row<T, kScores>(x + r * a.length, mask + r * mask_stride, a,
                                              [](auto, int64_t, int) FASTACT_LAMBDA {});
    largest[r] = row.largest;
    total[r] = row.total;
  }
  // The sum is at least exp(0) = 1.
  log1p(Pack<Lanes, 1>::load(total) - Pack<Lanes, 1>(C(1))).store(total);
  for (int r = 0; r < rows; ++r) {
    const C scale = static_cast<C>(a.scale);
    for_each_group<T>(a.length, [&](auto group, int64_t i, int count) FASTACT_LAMBDA {
      using V = decltype(group);
      const V z =
          scores<kScores>(x + r * a.length + i, mask + r * mask_stride + i, V(scale), count);
      store_lanes((z - V(largest[r])) - V(total[r]), y + r * a.length + i, count);
    });
  }
}

// Rows whose logarithms are taken together have to stay in the L1 meanwhile.
constexpr int64_t kLongRow = 1024;

// Rows this short lie side by side in the lanes of registers, so that no maximum, no sum and no
// logarithm is formed for each: 16 elements take 10.8 cycles in rows of 128 and 17 in rows of 129,
// which are computed one by one (Zen 5, float32).
constexpr int64_t kShortRow = 128;

template <class T>
int64_t softmax_rows_scratch(int64_t length) {
  using C = compute_t<T>;
  const int64_t side_by_side = (length < kShortRow ? length : kShortRow) * int64_t{Vec<C>::size};
  const int64_t alone = sizeof(T) == sizeof(C) ? 0 : length;
  return (alone > side_by_side ? alone : side_by_side) * static_cast<int64_t>(sizeof(C));
}

// Up to a register's lanes of rows, each in its lane; scratch[d] holds element d of every one.
template <class T, Scores kScores>
FASTACT_FN void softmax_lanes(const T* x, const T* mask, int64_t mask_stride, T* y, int rows,
                              const SoftmaxArguments& a, compute_t<T>* scratch) {
  using C = compute_t<T>;
  using V = Vec<C>;
  const int64_t n = a.length;
  const V scale(static_cast<C>(a.scale));
  V largest(negative_infinity<C>());
  for (int64_t i = 0; i < n; i += V::size) {
    const int width = n - i >= V::size ? V::size : static_cast<int>(n - i);
    V block[V::size];
    for (int r = 0; r < V::size; ++r) {
      block[r] = r < rows ? scores<kScores>(x + r * n + i, mask + r * mask_stride + i, scale, width)
                          : V(C(0));
    }
    transpose(block);
    for (int d = 0; d < width; ++d) {
      largest = max(largest, block[d]);
      block[d].store(scratch + (i + d) * V::size);
    }
  }
  V sum(C(0));
  constexpr int kUnroll = 4;
  using Group = Pack<V, kUnroll>;
  const Group all_largest = Group::broadcast(largest);
  int64_t d = 0;
  Group sums(C(0));
  for (; d + kUnroll <= n; d += kUnroll) {
    const Group z = Group::load(scratch + d * V::size) - all_largest;
    const Group e = exp(z);
    sums = sums + e;
    (a.log ? z : e).store(scratch + d * V::size);
  }
  for (; d < n; ++d) {
    const Pack<V, 1> z = Pack<V, 1>::broadcast(V::load(scratch + d * V::size) - largest);
    const Pack<V, 1> e = exp(z);
    sum = sum + e.part[0];
    (a.log ? z : e).store(scratch + d * V::size);
  }
  for (int u = 0; u < kUnroll; ++u) {
    sum = sum + sums.part[u];
  }
  const V inverse = V(C(1)) / sum;
  const V offset = a.log ? log1p(Pack<V, 1>::broadcast(sum - V(C(1)))).part[0] : sum;
  for (int64_t i = 0; i < n; i += V::size) {
    const int width = n - i >= V::size ? V::size : static_cast<int>(n - i);
    V block[V::size];
    for (int k = 0; k < V::size; ++k) {
      if (k < width) {
        const V v = V::load(scratch + (i + k) * V::size);
        block[k] = a.log ? v - offset : v * inverse;
      } else {
        block[k] = V(C(0));
      }
    }
    transpose(block);
    for (int r = 0; r < rows; ++r) {
      T* to = y + r * n + i;
      width == V::size ? block[r].store(to) : block[r].store(to, width);
    }
  }
}

template <class T, Scores kScores>
void softmax_rows_of(const void* x_, const void* mask_, int64_t mask_stride, void* y_, int64_t rows,
                     const SoftmaxArguments& a, void* scratch_) {
  const T* x = static_cast<const T*>(x_);
  const T* mask = static_cast<const T*>(mask_);
  T* y = static_cast<T*>(y_);
  compute_t<T>* scratch = static_cast<compute_t<T>*>(scratch_);
  if (a.length <= kShortRow && !a.alone) {
    constexpr int kLanes = Vec<compute_t<T>>::size;
    for (int64_t row = 0; row < rows; row += kLanes) {
      const int count = rows - row >= kLanes ? kLanes : static_cast<int>(rows - row);
      softmax_lanes<T, kScores>(x + row * a.length, mask + row * mask_stride, mask_stride,
                                y + row * a.length, count, a, scratch);
    }
    return;
  }
  if (a.log) {
    constexpr int kTogether = Vec<compute_t<T>>::size;
    const int together = a.length <= kLongRow ? kTogether : 1;
    for (int64_t row = 0; row < rows; row += together) {
      const int count = rows - row >= together ? together : static_cast<int>(rows - row);
      log_softmax_rows<T, kScores>(x + row * a.length, mask + row * mask_stride, mask_stride,
                                   y + row * a.length, count, a);
    }
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    softmax_row<T, kScores>(x + row * a.length, mask + row * mask_stride, y + row * a.length, a,
                            scratch);
  }
}

template <class T>
void softmax_rows(const void* x, const void* mask, int64_t mask_stride, void* y, int64_t rows,
                  const SoftmaxArguments& a, void* scratch) {
  if (mask) {
    (a.select ? softmax_rows_of<T, Scores::kSelected>
              : softmax_rows_of<T, Scores::kMasked>)(x, mask, mask_stride, y, rows, a, scratch);
  } else {
    (a.scale == 1 ? softmax_rows_of<T, Scores::kPlain>
                  : softmax_rows_of<T, Scores::kScaled>)(x, x, 0, y, rows, a, scratch);
  }
}

// 0 where the mask is true, else -inf.
template <class T>
void widen_mask(const void* mask_, void* row_, int64_t n) {
  const uint8_t* mask = static_cast<const uint8_t*>(mask_);
  T* row = static_cast<T*>(row_);
  T masked;
  if constexpr (sizeof(T) == sizeof(BFloat16)) {
    from_float(negative_infinity<float>(), &masked);
  } else {
    masked = negative_infinity<T>();
  }
  for (int64_t i = 0; i < n; ++i) {
    row[i] = mask[i] ? T() : masked;
  }
}

template <class T>
void clear_masked(const void* mask_, void* dx_, int64_t n) {
  const uint8_t* mask = static_cast<const uint8_t*>(mask_);
  T* dx = static_cast<T*>(dx_);
  for (int64_t i = 0; i < n; ++i) {
    dx[i] = mask[i] ? dx[i] : T();
  }
}

// Columns are computed by tiles: runs of a row's elements, long enough for the prefetcher to see
// them, over the whole length. With runs of 64, [8, 21, 64, 64] along dim 1 took 16.2 cycles per 16
// elements instead of 12.7, the gradient 20 instead of 12 (Zen 5, float32). A tile's exponentials
// stand in `scratch`.
constexpr int64_t kTileColumns = 256;
constexpr int64_t kTileBytes = 1 << 20;

template <class T>
int64_t tile_columns(int64_t length) {
  constexpr int64_t kGroup = SoftmaxGroup<T, 4>::size;
  const int64_t fit = kTileBytes / static_cast<int64_t>(sizeof(compute_t<T>)) / length;
  const int64_t groups = fit / kGroup;
  return groups < 1 ? kGroup : groups > kTileColumns / kGroup ? kTileColumns : groups * kGroup;
}

template <class T>
int64_t softmax_columns_scratch(int64_t length) {
  return length * tile_columns<T>(length) * static_cast<int64_t>(sizeof(compute_t<T>));
}

// f(i, count) for each group of columns.
template <class V, class F>
FASTACT_FN void for_each_column_group(int64_t columns, const F& f) {
  int64_t i = 0;
  for (; i + V::size <= columns; i += V::size) {
    f(i, V::size);
  }
  if (i < columns) {
    f(i, static_cast<int>(columns - i));
  }
}

// f(d, i, count, a constant number of rows) for all groups of columns of some rows, then of the
// next: what belongs to a column is loaded once for them all.
template <class V, class F>
FASTACT_FN void for_each_row_group(int64_t length, int64_t columns, const F& f) {
  constexpr int64_t kRows = 4;
  int64_t d = 0;
  for (; d + kRows <= length; d += kRows) {
    for_each_column_group<V>(columns, [&](int64_t i, int count) FASTACT_LAMBDA {
      f(d, i, count, std::integral_constant<int, kRows>());
    });
  }
  for (; d < length; ++d) {
    for_each_column_group<V>(columns, [&](int64_t i, int count) FASTACT_LAMBDA {
      f(d, i, count, std::integral_constant<int, 1>());
    });
  }
}

template <class T>
void softmax_columns(const void* x_, void* y_, int64_t stride, int64_t columns,
                     const SoftmaxArguments& a, void* scratch_) {
  using V = SoftmaxGroup<T, 4>;
  using C = compute_t<T>;
  const V scale(static_cast<C>(a.scale));
  C* scratch = static_cast<C*>(scratch_);
  const int64_t tile = tile_columns<T>(a.length);
  for (int64_t first = 0; first < columns; first += tile) {
    const T* x = static_cast<const T*>(x_) + first;
    T* y = static_cast<T*>(y_) + first;
    const int64_t width = columns - first < tile ? columns - first : tile;
    const int64_t row = (width + V::size - 1) / V::size * V::size;  // of scratch
    alignas(64) C of_column[kTileColumns];  // the maximum, then the sum's inverse or logarithm
    alignas(64) C sums[kTileColumns];
    for (int64_t i = 0; i < row; i += V::size) {
      V(negative_infinity<C>()).store(of_column + i);
      V(C(0)).store(sums + i);
    }
    for_each_row_group<V>(a.length, width,
                          [&](int64_t d, int64_t i, int count, auto rows) FASTACT_LAMBDA {
                            V top = V::load(of_column + i);
                            for (int k = 0; k < rows; ++k) {
                              const T* p = x + (d + k) * stride + i;
                              const V z = load_lanes<V>(p, count) * scale;
                              top = max(top, z);
                            }
                            top.store(of_column + i);
                          });
    for_each_row_group<V>(a.length, width,
                          [&](int64_t d, int64_t i, int count, auto rows) FASTACT_LAMBDA {
                            const V top = V::load(of_column + i);
                            V sum = V::load(sums + i);
                            for (int k = 0; k < rows; ++k) {
                              const T* p = x + (d + k) * stride + i;
                              const V z = load_lanes<V>(p, count) * scale - top;
                              const V e = exp(z);
                              sum = sum + e;
                              (a.log ? z : e).store(scratch + (d + k) * row + i);
                            }
                            sum.store(sums + i);
                          });
    for (int64_t i = 0; i < row; i += V::size) {
      const V sum = V::load(sums + i);
      (a.log ? log1p(sum - V(C(1))) : V(C(1)) / sum).store(of_column + i);  // sum >= exp(0)
    }
    for_each_row_group<V>(a.length, width,
                          [&](int64_t d, int64_t i, int count, auto rows) FASTACT_LAMBDA {
                            const V t = V::load(of_column + i);
                            for (int k = 0; k < rows; ++k) {
                              const V v = V::load(scratch + (d + k) * row + i);
                              const V r = a.log ? v - t : v * t;
                              T* p = y + (d + k) * stride + i;
                              store_lanes(r, p, count);
                            }
                          });
  }
}

// dx of one group, from the sum over its row or column.
template <class V>
FASTACT_FN V softmax_gradient(V grad, V y, V sum, V scale, bool log) {
  return log ? fnma(exp(y), sum, grad) : scale * y * (grad - sum);
}

template <class T>
void softmax_rows_backward(const void* grad_, const void* y_, void* dx_, int64_t rows,
                           const SoftmaxArguments& a) {
  using C = compute_t<T>;
  using All = SoftmaxGroup<T, 4>;
  const C scale = static_cast<C>(a.scale);
  const auto add = [](auto p, auto q) FASTACT_LAMBDA { return p + q; };
  for (int64_t row = 0; row < rows; ++row) {
    const T* grad = static_cast<const T*>(grad_) + row * a.length;
    const T* y = static_cast<const T*>(y_) + row * a.length;
    T* dx = static_cast<T*>(dx_) + row * a.length;
    if (a.length <= All::size) {
      for_each_group<T>(a.length, [&](auto group, int64_t, int count) FASTACT_LAMBDA {
        using V = decltype(group);
        const V g = load_lanes<V>(grad, count);
        const V v = load_lanes<V>(y, count);
        const V sum(horizontal_sum(a.log ? g : g * v));
        store_lanes(softmax_gradient(g, v, sum, V(scale), a.log), dx, count);
      });
      continue;
    }
    All sums(C(0));
    for_each_group<T>(a.length, [&](auto group, int64_t i, int count) FASTACT_LAMBDA {
      using V = decltype(group);
      const V g = load_lanes<V>(grad + i, count);
      accumulate(&sums, a.log ? g : g * load_lanes<V>(y + i, count), add);
    });
    const C sum = horizontal_sum(sums);
    for_each_group<T>(a.length, [&](auto group, int64_t i, int count) FASTACT_LAMBDA {
      using V = decltype(group);
      store_lanes(softmax_gradient(load_lanes<V>(grad + i, count), load_lanes<V>(y + i, count),
                                   V(sum), V(scale), a.log),
                  dx + i, count);
    });
  }
}

template <class T>
void softmax_columns_backward(const void* grad_, const void* y_, void* dx_, int64_t stride,
                              int64_t columns, const SoftmaxArguments& a) {
  using V = SoftmaxGroup<T, 4>;
  using C = compute_t<T>;
  const V scale(static_cast<C>(a.scale));
  const int64_t tile = tile_columns<T>(a.length);
  for (int64_t first = 0; first < columns; first += tile) {
    const T* grad = static_cast<const T*>(grad_) + first;
    const T* y = static_cast<const T*>(y_) + first;
    T* dx = static_cast<T*>(dx_) + first;
    const int64_t width = columns - first < tile ? columns - first : tile;
    alignas(64) C sums[kTileColumns] = {};
    for_each_row_group<V>(a.length, width,
                          [&](int64_t d, int64_t i, int count, auto rows) FASTACT_LAMBDA {
                            V sum = V::load(sums + i);
                            for (int k = 0; k < rows; ++k) {
                              const int64_t at = (d + k) * stride + i;
                              const V g = load_lanes<V>(grad + at, count);
                              const V v = load_lanes<V>(y + at, count);
                              sum = a.log ? sum + g : fma(g, v, sum);
                            }
                            sum.store(sums + i);
                          });
    for_each_row_group<V>(a.length, width,
                          [&](int64_t d, int64_t i, int count, auto rows) FASTACT_LAMBDA {
                            const V sum = V::load(sums + i);
                            for (int k = 0; k < rows; ++k) {
                              const int64_t at = (d + k) * stride + i;
                              const V g = load_lanes<V>(grad + at, count);
                              const V v = load_lanes<V>(y + at, count);
                              const V r = softmax_gradient(g, v, sum, scale, a.log);
                              store_lanes(r, dx + at, count);
                            }
                          });
  }
}

template <class T>
constexpr SoftmaxKernels kSoftmaxKernels = {
    &softmax_rows_scratch<T>,  &softmax_columns_scratch<T>,  &softmax_rows<T>, &softmax_columns<T>,
    &softmax_rows_backward<T>, &softmax_columns_backward<T>, &widen_mask<T>,   &clear_masked<T>};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
