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

// max() returns its second operand where either is NaN, so a NaN may be lost here; it then makes
// the sum NaN.
//
// `scratch` holds one row of z, filled up to whole groups with -inf, whose exponential is 0.
template <class T, int U>
FASTACT_FN void softmax_row(const T* x, const T* mask, T* y, const SoftmaxArguments& a,
                            compute_t<T>* scratch) {
  using V = SoftmaxGroup<T, U>;
  using C = compute_t<T>;
  const int64_t n = a.length;
  const int64_t body = n / V::size * V::size;
  const int rest = static_cast<int>(n - body);
  const V scale(static_cast<C>(a.scale));

  V top(negative_infinity<C>());
  const auto value = [&](V z, V m) { return mask ? fma(z, scale, m) : z * scale; };
  for (int64_t i = 0; i < body; i += V::size) {
    const V z = value(V::load(x + i), mask ? V::load(mask + i) : V(C(0)));
    z.store(scratch + i);
    top = max(top, z);
  }
  if (rest) {
    V(negative_infinity<C>()).store(scratch + body);
    value(V::load(x + body, rest), mask ? V::load(mask + body, rest) : V(C(0)))
        .store(scratch + body, rest);
    top = max(top, V::load(scratch + body));
  }
  const V largest(horizontal_max(top));

  V sum(C(0));
  const int64_t padded = rest ? body + V::size : body;
  for (int64_t i = 0; i < padded; i += V::size) {
    const V z = V::load(scratch + i) - largest;
    const V e = exp(z);
    sum = sum + e;
    if (!a.log) {
      e.store(scratch + i);
    }
  }
  const C total = horizontal_sum(sum);

  const V inverse(C(1) / total);
  const V offset(a.log ? log_of_sum(total) : C(0));
  const auto result = [&](V z) { return a.log ? (z - largest) - offset : z * inverse; };
  for (int64_t i = 0; i < body; i += V::size) {
    result(V::load(scratch + i)).store(y + i);
  }
  if (rest) {
    result(V::load(scratch + body)).store(y + body, rest);
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

template <class T>
int64_t softmax_rows_scratch(int64_t length) {
  constexpr int64_t kSize = SoftmaxGroup<T, 4>::size;
  return (length + kSize) * static_cast<int64_t>(sizeof(compute_t<T>));
}

template <class T>
void softmax_rows(const void* x, const void* mask, int64_t mask_stride, void* y, int64_t rows,
                  const SoftmaxArguments& a, void* scratch) {
  with_registers<T>(a.length, [&](auto group) {
    constexpr int kUnroll = decltype(group)::size / Vec<compute_t<T>>::size;
    for (int64_t row = 0; row < rows; ++row) {
      const T* m = static_cast<const T*>(mask);
      softmax_row<T, kUnroll>(static_cast<const T*>(x) + row * a.length,
                              m ? m + row * mask_stride : m, static_cast<T*>(y) + row * a.length, a,
                              static_cast<compute_t<T>*>(scratch));
    }
  });
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
    &softmax_rows_scratch<T>, &softmax_columns_scratch<T>, &softmax_rows<T>,
    &softmax_columns<T>,      &softmax_rows_backward<T>,   &softmax_columns_backward<T>};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
