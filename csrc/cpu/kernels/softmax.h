// Softmax along rows of contiguous elements, and along columns without transposing. Sums are formed
// in a fixed order: a row's bits do not depend on the batch it stands in or on the threads.
#pragma once

#include "cpu/kernels/compute_type.h"
#include "cpu/kernels/tables.h"
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

// log(sum) for a sum of at least exp(0) = 1.
template <class C>
FASTACT_FN C log_of_sum(C sum) {
  return horizontal_max(log1p(Pack<Vec<C>, 1>(sum - C(1))));
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
  const auto load = [&](const T* p) FASTACT_LAMBDA {
    return count == V::size ? V::load(p) : V::load(p, count);
  };
  const V v = load(x);
  if constexpr (kScores == Scores::kPlain) {
    return v;
  } else if constexpr (kScores == Scores::kScaled) {
    return v * scale;
  } else if constexpr (kScores == Scores::kMasked) {
    return fma(v, scale, load(mask));
  } else {
    const V m = load(mask);
    return select(m < V(C(0)), m, v * scale);
  }
}

// max() returns its second operand where either is NaN, so a NaN may be lost here; it then makes
// the sum NaN.
//
// `scratch` holds one row of exponentials, where y is too narrow for them.
template <class T, int U, Scores kScores>
FASTACT_FN void softmax_row(const T* x, const T* mask, T* y, const SoftmaxArguments& a,
                            compute_t<T>* scratch) {
  using V = SoftmaxGroup<T, U>;
  using C = compute_t<T>;
  const int64_t n = a.length;
  const int64_t body = n / V::size * V::size;
  const int rest = static_cast<int>(n - body);
  const V scale(static_cast<C>(a.scale));
  const auto z = [&](int64_t i, int count)
                     FASTACT_LAMBDA { return scores<kScores>(x + i, mask + i, scale, count); };
  V top(negative_infinity<C>());
  for (int64_t i = 0; i < body; i += V::size) {
    top = max(top, z(i, V::size));
  }
  V last(C(0));
  if (rest) {
    // The lanes behind the row's end, where z is 0, must not count.
    last = z(body, rest) + V::load(kBehind<C, V::size>.values + V::size - rest);
    top = max(top, last);
  }
  const V largest(horizontal_max(top));

  // In float and double, y itself holds the exponentials.
  constexpr bool kInPlace = sizeof(T) == sizeof(C);
  V sum(C(0));
  for (int64_t i = 0; i < body; i += V::size) {
    const V e = exp(z(i, V::size) - largest);
    sum = sum + e;
    if (!a.log) {
      if constexpr (kInPlace) {
        e.store(y + i);
      } else {
        e.store(scratch + i);
      }
    }
  }
  if (rest) {
    const V e = exp(last - largest);
    sum = sum + e;
    last = a.log ? last : e;
  }
  const C total = horizontal_sum(sum);

  if (a.log) {
    const V offset(log_of_sum(total));
    for (int64_t i = 0; i < body; i += V::size) {
      ((z(i, V::size) - largest) - offset).store(y + i);
    }
    if (rest) {
      ((last - largest) - offset).store(y + body, rest);
    }
    return;
  }
  const V inverse(C(1) / total);
  for (int64_t i = 0; i < body; i += V::size) {
    if constexpr (kInPlace) {
      (V::load(y + i) * inverse).store(y + i);
    } else {
      (V::load(scratch + i) * inverse).store(y + i);
    }
  }
  if (rest) {
    (last * inverse).store(y + body, rest);
  }
}

// As few registers as hold the row, where it is short.
template <class T, class F>
FASTACT_FN void with_registers(int64_t length, const F& f) {
  constexpr int kLanes = Vec<compute_t<T>>::size;
  if (length <= kLanes) {
    f(SoftmaxGroup<T, 1>(compute_t<T>(0)));
  } else if (length <= 2 * kLanes) {
    f(SoftmaxGroup<T, 2>(compute_t<T>(0)));
  } else {
    f(SoftmaxGroup<T, 4>(compute_t<T>(0)));
  }
}

// Rows this short lie side by side in the lanes of registers, so that no maximum, no sum and no
// logarithm is formed for each: 16 elements take 12.3 cycles in rows of 128 and 19.6 in rows of
// 129, which are computed one by one; of log_softmax 13 and 30 (Zen 5, float32).
constexpr int64_t kShortRow = 128;

template <class T>
int64_t softmax_rows_scratch(int64_t length) {
  constexpr int64_t kSize = SoftmaxGroup<T, 4>::size;
  const int64_t short_length = length < kShortRow ? length : kShortRow;
  const int64_t side_by_side = short_length * Vec<compute_t<T>>::size;
  return (length + kSize > side_by_side ? length + kSize : side_by_side) *
         static_cast<int64_t>(sizeof(compute_t<T>));
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
  if (a.length <= kShortRow) {
    constexpr int kLanes = Vec<compute_t<T>>::size;
    for (int64_t row = 0; row < rows; row += kLanes) {
      const int count = rows - row >= kLanes ? kLanes : static_cast<int>(rows - row);
      softmax_lanes<T, kScores>(x + row * a.length, mask + row * mask_stride, mask_stride,
                                y + row * a.length, count, a, scratch);
    }
    return;
  }
  with_registers<T>(a.length, [&](auto group) {
    constexpr int kUnroll = decltype(group)::size / Vec<compute_t<T>>::size;
    for (int64_t row = 0; row < rows; ++row) {
      softmax_row<T, kUnroll, kScores>(x + row * a.length, mask + row * mask_stride,
                                       y + row * a.length, a, scratch);
    }
  });
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

// One group of columns; `scratch` holds its exponentials.
template <class V, class T>
FASTACT_FN void softmax_column_group(const T* x, T* y, int64_t stride, int count,
                                     const SoftmaxArguments& a, compute_t<T>* scratch) {
  using C = compute_t<T>;
  const V scale(static_cast<C>(a.scale));
  const auto load = [&](int64_t d) {
    const T* p = x + d * stride;
    return (count == V::size ? V::load(p) : V::load(p, count)) * scale;
  };
  V largest = load(0);
  for (int64_t d = 1; d < a.length; ++d) {
    largest = max(largest, load(d));
  }
  V sum(C(0));
  for (int64_t d = 0; d < a.length; ++d) {
    const V z = load(d) - largest;
    const V e = exp(z);
    sum = sum + e;
    (a.log ? z : e).store(scratch + d * V::size);
  }
  const V inverse = V(C(1)) / sum;
  const V offset = a.log ? log1p(sum - V(C(1))) : sum;  // sum >= exp(0)
  for (int64_t d = 0; d < a.length; ++d) {
    const V v = V::load(scratch + d * V::size);
    const V r = a.log ? v - offset : v * inverse;
    count == V::size ? r.store(y + d * stride) : r.store(y + d * stride, count);
  }
}

// Four registers of columns at a time while their exponentials fit the second-level cache.
constexpr int64_t kLongColumn = 1024;

template <class T>
int64_t softmax_columns_scratch(int64_t length) {
  const int64_t size = length > kLongColumn ? SoftmaxGroup<T, 1>::size : SoftmaxGroup<T, 4>::size;
  return length * size * static_cast<int64_t>(sizeof(compute_t<T>));
}

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

template <class T>
void softmax_columns(const void* x_, void* y_, int64_t stride, int64_t columns,
                     const SoftmaxArguments& a, void* scratch) {
  const T* x = static_cast<const T*>(x_);
  T* y = static_cast<T*>(y_);
  const auto run = [&](auto group) {
    using V = decltype(group);
    for_each_column_group<V>(columns, [&](int64_t i, int count) {
      softmax_column_group<V>(x + i, y + i, stride, count, a, static_cast<compute_t<T>*>(scratch));
    });
  };
  if (a.length > kLongColumn) {
    run(SoftmaxGroup<T, 1>(compute_t<T>(0)));
  } else {
    run(SoftmaxGroup<T, 4>(compute_t<T>(0)));
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
  with_registers<T>(a.length, [&](auto group) {
    using V = decltype(group);
    using C = compute_t<T>;
    const int64_t n = a.length;
    const int64_t body = n / V::size * V::size;
    const int rest = static_cast<int>(n - body);
    const V scale(static_cast<C>(a.scale));
    for (int64_t row = 0; row < rows; ++row) {
      const T* grad = static_cast<const T*>(grad_) + row * n;
      const T* y = static_cast<const T*>(y_) + row * n;
      T* dx = static_cast<T*>(dx_) + row * n;
      V sums(C(0));
      const auto add = [&](V g, V v) { sums = a.log ? sums + g : fma(g, v, sums); };
      for (int64_t i = 0; i < body; i += V::size) {
        add(V::load(grad + i), V::load(y + i));
      }
      if (rest) {
        add(V::load(grad + body, rest), V::load(y + body, rest));
      }
      const V sum(horizontal_sum(sums));
      for (int64_t i = 0; i < body; i += V::size) {
        softmax_gradient(V::load(grad + i), V::load(y + i), sum, scale, a.log).store(dx + i);
      }
      if (rest) {
        softmax_gradient(V::load(grad + body, rest), V::load(y + body, rest), sum, scale, a.log)
            .store(dx + body, rest);
      }
    }
  });
}

template <class T>
void softmax_columns_backward(const void* grad_, const void* y_, void* dx_, int64_t stride,
                              int64_t columns, const SoftmaxArguments& a) {
  using V = SoftmaxGroup<T, 4>;
  using C = compute_t<T>;
  const V scale(static_cast<C>(a.scale));
  for_each_column_group<V>(columns, [&](int64_t i, int count) {
    const T* grad = static_cast<const T*>(grad_) + i;
    const T* y = static_cast<const T*>(y_) + i;
    T* dx = static_cast<T*>(dx_) + i;
    const auto load = [&](const T* p) { return count == V::size ? V::load(p) : V::load(p, count); };
    V sum(C(0));
    for (int64_t d = 0; d < a.length; ++d) {
      const V g = load(grad + d * stride);
      sum = a.log ? sum + g : fma(g, load(y + d * stride), sum);
    }
    for (int64_t d = 0; d < a.length; ++d) {
      const V r =
          softmax_gradient(load(grad + d * stride), load(y + d * stride), sum, scale, a.log);
      count == V::size ? r.store(dx + d * stride) : r.store(dx + d * stride, count);
    }
  });
}

template <class T>
constexpr SoftmaxKernels kSoftmaxKernels = {
    &softmax_rows_scratch<T>,  &softmax_columns_scratch<T>,  &softmax_rows<T>, &softmax_columns<T>,
    &softmax_rows_backward<T>, &softmax_columns_backward<T>, &widen_mask<T>};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
