// The transforms of Winograd's convolutions of 3x3 kernels (Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, arXiv:1509.09308): an output tile of M x M pixels comes from
// (M + 2) x (M + 2) products for each pair of channels, in place of 9 M M. The products themselves
// are matrix products over channels, one for each of these points.
#pragma once

#include "cpu/kernels/conv_table.h"
#include "cpu/kernels/loops.h"
#include "math/compute_type.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// One dimension of F(M, 3): B^T x, G x and A^T x of the article.
template <int M>
struct WinogradTransform;

// The points 0, 1, -1 and infinity.
template <>
struct WinogradTransform<2> {
  template <class V>
  static FASTACT_FN void input(const V (&x)[4], V (&y)[4]) {
    y[0] = x[0] - x[2];
    y[1] = x[1] + x[2];
    y[2] = x[2] - x[1];
    y[3] = x[1] - x[3];
  }
  template <class V>
  static FASTACT_FN void weight(const V (&x)[3], V (&y)[4]) {
    const V half(typename V::scalar(0.5));
    const V even = (x[0] + x[2]) * half;
    const V odd = x[1] * half;
    y[0] = x[0];
    y[1] = even + odd;
    y[2] = even - odd;
    y[3] = x[2];
  }
  template <class V>
  static FASTACT_FN void output(const V (&x)[4], V (&y)[2]) {
    y[0] = (x[0] + x[1]) + x[2];
    y[1] = (x[1] - x[2]) - x[3];
  }
};

// The points 0, +-a, +-b and infinity with a b = 1, which keeps the numbers of the transforms, and
// so the error, small: at the usual 0, +-1, +-2 it is twice as large.
template <>
struct WinogradTransform<4> {
  static constexpr double a = 0.70710678118654752;
  static constexpr double b = 1.41421356237309505;
  static constexpr double a2 = a * a;
  static constexpr double b2 = b * b;

  template <class V>
  static FASTACT_FN V number(double value) {
    return V(static_cast<typename V::scalar>(value));
  }

  template <class V>
  static FASTACT_FN void input(const V (&x)[6], V (&y)[6]) {
    const V even_a = fnma(x[2], number<V>(b2), x[4]);
    const V odd_a = fnma(x[1], number<V>(a * b2), x[3] * number<V>(a));
    const V even_b = fnma(x[2], number<V>(a2), x[4]);
    const V odd_b = fnma(x[1], number<V>(b * a2), x[3] * number<V>(b));
    y[0] = fma(x[0], number<V>(a2 * b2), fnma(x[2], number<V>(a2 + b2), x[4]));
    y[1] = even_a + odd_a;
    y[2] = even_a - odd_a;
    y[3] = even_b + odd_b;
    y[4] = even_b - odd_b;
    y[5] = fma(x[1], number<V>(a2 * b2), fnma(x[3], number<V>(a2 + b2), x[5]));
  }
  template <class V>
  static FASTACT_FN void weight(const V (&x)[3], V (&y)[6]) {
    constexpr double at_a = 1 / (2 * a2 * (a2 - b2));
    constexpr double at_b = 1 / (2 * b2 * (b2 - a2));
    const V even_a = fma(x[2], number<V>(at_a * a2), x[0] * number<V>(at_a));
    const V odd_a = x[1] * number<V>(at_a * a);
    const V even_b = fma(x[2], number<V>(at_b * b2), x[0] * number<V>(at_b));
    const V odd_b = x[1] * number<V>(at_b * b);
    y[0] = x[0] * number<V>(1 / (a2 * b2));
    y[1] = even_a + odd_a;
    y[2] = even_a - odd_a;
    y[3] = even_b + odd_b;
    y[4] = even_b - odd_b;
    y[5] = x[2];
  }
  template <class V>
  static FASTACT_FN void output(const V (&x)[6], V (&y)[4]) {
    const V sum_a = x[1] + x[2];
    const V difference_a = x[1] - x[2];
    const V sum_b = x[3] + x[4];
    const V difference_b = x[3] - x[4];
    y[0] = (x[0] + sum_a) + sum_b;
    y[1] = fma(difference_b, number<V>(b), difference_a * number<V>(a));
    y[2] = fma(sum_b, number<V>(b2), sum_a * number<V>(a2));
    y[3] = fma(difference_b, number<V>(b * b2), fma(difference_a, number<V>(a * a2), x[5]));
  }
};

// A transform of the columns, then of the rows, of an I x I matrix of vectors, load(i, j), into an
// O x O one, store(i, j, vector).
template <class V, int I, int O, class F, class L, class S>
FASTACT_FN void transform_matrix(const F& f, const L& load, const S& store) {
  V half[I][O];
  FASTACT_UNROLL for (int i = 0; i < I; ++i) {
    V row[I];
    FASTACT_UNROLL for (int j = 0; j < I; ++j) row[j] = load(i, j);
    f(row, half[i]);
  }
  FASTACT_UNROLL for (int j = 0; j < O; ++j) {
    V column[I];
    V result[O];
    FASTACT_UNROLL for (int i = 0; i < I; ++i) column[i] = half[i][j];
    f(column, result);
    FASTACT_UNROLL for (int i = 0; i < O; ++i) store(i, j, result[i]);
  }
}

// One tile: pixels[i * A + j] points to the channels of a pixel, values + point * step get those of
// a point.
template <class T, int M>
void winograd_input(const void* const* pixels, int64_t channels, void* values_, int64_t step) {
  using C = compute_t<T>;
  using V = Vec<C>;
  constexpr int A = M + 2;
  C* values = static_cast<C*>(values_);
  for_each_vector<V>(channels, [&](int64_t c, auto count) FASTACT_LAMBDA {
    transform_matrix<V, A, A>(
        [](const V(&x)[A], V(&y)[A]) FASTACT_LAMBDA { WinogradTransform<M>::input(x, y); },
        [&](int i, int j) FASTACT_LAMBDA {
          return load_lanes<V>(static_cast<const T*>(pixels[i * A + j]) + c, count);
        },
        [&](int i, int j, V v)
            FASTACT_LAMBDA { store_lanes(v, values + (i * A + j) * step + c, count); });
  });
}

// Rows of out channels, [tap][channel] with the strides given, into such rows of each point:
// `columns` of them are whole registers.
template <class C, int M>
void winograd_weights(const void* rows_, int64_t tap_stride, int64_t channel_stride,
                      int64_t channels, int64_t columns, void* values_, int64_t point_stride,
                      int64_t value_stride) {
  using V = Vec<C>;
  constexpr int A = M + 2;
  const C* rows = static_cast<const C*>(rows_);
  C* values = static_cast<C*>(values_);
  for (int64_t c = 0; c < channels; ++c) {
    const C* from = rows + c * channel_stride;
    C* to = values + c * value_stride;
    for (int64_t k = 0; k < columns; k += V::size) {
      transform_matrix<V, 3, A>(
          [](const V(&x)[3], V(&y)[A]) FASTACT_LAMBDA { WinogradTransform<M>::weight(x, y); },
          [&](int i, int j) FASTACT_LAMBDA { return V::load(from + (i * 3 + j) * tap_stride + k); },
          [&](int i, int j, V v) FASTACT_LAMBDA { v.store(to + (i * A + j) * point_stride + k); });
    }
  }
}

// `tiles` tiles whose products lie at sums + point * point_stride + tile * tile_stride, `columns`
// of them (whole registers). Output pixel (i, j) of tile t, with the bias added, goes to
// values + i * row_stride + (t * M + j) * tile_stride.
template <class C, int M>
bool winograd_output(const void* sums_, int64_t point_stride, int64_t tile_stride, int64_t tiles,
                     int64_t columns, const void* bias_, void* values_, int64_t row_stride) {
  using V = Vec<C>;
  constexpr int A = M + 2;
  const C* bias = static_cast<const C*>(bias_);
  const V zero(C(0));
  V sum_of_zeros = zero;  // NaN once a value is not finite
  for (int64_t t = 0; t < tiles; ++t) {
    const C* sums = static_cast<const C*>(sums_) + t * tile_stride;
    C* values = static_cast<C*>(values_) + t * M * tile_stride;
    for (int64_t k = 0; k < columns; k += V::size) {
      const V add = V::load(bias + k);
      transform_matrix<V, A, M>(
          [](const V(&x)[A], V(&y)[M]) FASTACT_LAMBDA { WinogradTransform<M>::output(x, y); },
          [&](int i, int j)
              FASTACT_LAMBDA { return V::load(sums + (i * A + j) * point_stride + k); },
          [&](int i, int j, V v) FASTACT_LAMBDA {
            const V value = v + add;
            sum_of_zeros = fma(value, zero, sum_of_zeros);
            value.store(values + i * row_stride + j * tile_stride + k);
          });
    }
  }
  return horizontal_sum(sum_of_zeros) == 0;
}

template <class T, int M>
constexpr WinogradKernels kWinogradKernels = {
    &winograd_input<T, M>,
    &winograd_weights<compute_t<T>, M>,
    &winograd_output<compute_t<T>, M>,
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
