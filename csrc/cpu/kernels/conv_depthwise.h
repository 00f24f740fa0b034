// Depthwise convolutions, where every channel has a kernel of its own: a sum over taps for each
// pixel, so that what counts is how often a number is loaded. A block of rows by pixels is kept in
// registers; channels last, the lanes are channels, else pixels.
#pragma once

#include "cpu/kernels/conv_table.h"
#include "cpu/kernels/loops.h"
#include "math/compute_type.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Kernels of F x F taps and a stride of S are compiled for these; F = 0: any other.
template <class T, int F, int S>
struct Depthwise {
  using C = compute_t<T>;
  using V = Vec<C>;
  static constexpr bool kManyRegisters = sizeof(V) == 64;
  // Rows and pixels whose sums fill the registers with the weights that one line of input meets.
  static constexpr int kRows = F == 0 ? 1 : kManyRegisters ? 4 : 2;
  static constexpr int kPixels = 4;
  static constexpr int kLines = (kRows - 1) * S + F;
  // Rows of a plane, which have no weights in registers where F is large.
  static constexpr int kPlaneRows = F == 0 ? 1 : kManyRegisters ? 8 : 4;

  // kRows x P pixels from `left` (a place in the padded line) on, and V::size channels. Of a single
  // pixel, the taps [first, last) alone lie inside.
  template <int P, class Count>
  static FASTACT_FN void block(const DepthwiseBand& b, int64_t c, Count count, int64_t pixel,
                               int64_t first, int64_t last) {
    const C* weight = static_cast<const C*>(b.weight) + c;
    const V bias = load_lanes<V>(static_cast<const C*>(b.bias) + c, count);
    V sum[kRows][P];
    FASTACT_UNROLL for (int i = 0; i < kRows; ++i) {
      FASTACT_UNROLL for (int j = 0; j < P; ++j) sum[i][j] = bias;
    }
    const int64_t left = pixel * S - b.padding;
    FASTACT_UNROLL for (int r = 0; r < kLines; ++r) {
      if (!b.lines[r]) {
        continue;
      }
      const T* line = static_cast<const T*>(b.lines[r]) + left * b.channels + c;
      V own[kRows][F];
      FASTACT_UNROLL for (int i = 0; i < kRows; ++i) {
        FASTACT_UNROLL for (int x = 0; x < F; ++x) {
          const int y = r - i * S;
          if (y >= 0 && y < F) {
            own[i][x] = load_lanes<V>(weight + (y * F + x) * b.channels, count);
          }
        }
      }
      FASTACT_UNROLL for (int q = 0; q < (P - 1) * S + F; ++q) {
        if (P == 1 && (q < first || q >= last)) {
          continue;
        }
        const V v = load_lanes<V>(line + q * b.channels, count);
        FASTACT_UNROLL for (int i = 0; i < kRows; ++i) {
          FASTACT_UNROLL for (int j = 0; j < P; ++j) {
            const int y = r - i * S;
            const int x = q - j * S;
            if (y >= 0 && y < F && x >= 0 && x < F) {
              sum[i][j] = fma(v, own[i][x], sum[i][j]);
            }
          }
        }
      }
    }
    store_block<P>(b, c, count, pixel, sum);
  }

  template <int P, class Count>
  static FASTACT_FN void store_block(const DepthwiseBand& b, int64_t c, Count count, int64_t pixel,
                                     const V (&sum)[kRows][P]) {
    FASTACT_UNROLL for (int i = 0; i < kRows; ++i) {
      if (i < b.rows) {
        FASTACT_UNROLL for (int j = 0; j < P; ++j) {
          store_lanes(sum[i][j],
                      static_cast<C*>(b.to) + i * b.row_stride + (pixel + j) * b.channels + c,
                      count);
        }
      }
    }
  }

  // The same of any kernel, stride and dilation: one row.
  template <int P, class Count>
  static FASTACT_FN void block_of_any(const DepthwiseBand& b, int64_t c, Count count, int64_t pixel,
                                      int64_t first, int64_t last) {
    const C* weight = static_cast<const C*>(b.weight) + c;
    const V bias = load_lanes<V>(static_cast<const C*>(b.bias) + c, count);
    V sum[1][P];
    FASTACT_UNROLL for (int j = 0; j < P; ++j) sum[0][j] = bias;
    const int64_t left = pixel * b.stride - b.padding;
    for (int64_t y = 0; y < b.kernel_height; ++y) {
      if (!b.lines[y]) {
        continue;
      }
      const T* line = static_cast<const T*>(b.lines[y]) + left * b.channels + c;
      for (int64_t x = first; x < last; ++x) {
        const V own = load_lanes<V>(weight + (y * b.kernel_width + x) * b.channels, count);
        FASTACT_UNROLL for (int j = 0; j < P; ++j) {
          const T* at = line + (x * b.dilation + j * b.stride) * b.channels;
          sum[0][j] = fma(load_lanes<V>(at, count), own, sum[0][j]);
        }
      }
    }
    store_block<P>(b, c, count, pixel, sum);
  }

  template <int P>
  static FASTACT_FN void pixels(const DepthwiseBand& b, int64_t pixel, int64_t first,
                                int64_t last) {
    for_each_vector<V>(b.channels, [&](int64_t c, auto count) FASTACT_LAMBDA {
      if constexpr (F == 0) {
        block_of_any<P>(b, c, count, pixel, first, last);
      } else {
        block<P>(b, c, count, pixel, first, last);
      }
    });
  }

  static void band(const DepthwiseBand& b) {
    const int64_t stride = F == 0 ? b.stride : S;
    const int64_t dilation = F == 0 ? b.dilation : 1;
    const int64_t taps = F == 0 ? b.kernel_width : F;
    const int64_t extent = (taps - 1) * dilation + 1;
    for (int64_t pixel = 0; pixel < b.pixels;) {
      const int64_t left = pixel * stride - b.padding;
      const int64_t right = left + (kPixels - 1) * stride + extent;
      if (left >= 0 && right <= b.width && pixel + kPixels <= b.pixels) {
        pixels<kPixels>(b, pixel, 0, taps);
        pixel += kPixels;
        continue;
      }
      int64_t first = 0;
      int64_t last = taps;
      while (first < taps && left + first * dilation < 0) {
        ++first;
      }
      while (last > first && left + (last - 1) * dilation >= b.width) {
        --last;
      }
      pixels<1>(b, pixel, first, last);
      ++pixel;
    }
  }

  // kPlaneRows rows by V::size pixels of a plane whose lines are padded and, of stride 2, hold the
  // even places before the odd ones.
  template <class Count>
  static FASTACT_FN void plane_block(const DepthwisePlane& p, int64_t row, int rows, int64_t pixel,
                                     Count count) {
    constexpr int kOwn = F == 0 ? 1 : F;
    const C* weight = static_cast<const C*>(p.weight);
    const C* from = static_cast<const C*>(p.lines) + pixel;
    const V bias(p.bias ? *static_cast<const C*>(p.bias) : C(0));
    V sum[kPlaneRows];
    FASTACT_UNROLL for (int i = 0; i < kPlaneRows; ++i) sum[i] = bias;
    if constexpr (F == 0) {
      for (int64_t y = 0; y < p.kernel_height; ++y) {
        const C* line = from + (row * p.stride_height + y * p.dilation_height) * p.line_stride;
        for (int64_t x = 0; x < p.kernel_width; ++x) {
          const int64_t place = x * p.dilation_width;
          const C* at = line + place % p.stride_width * p.phase_stride + place / p.stride_width;
          sum[0] = fma(V::load(at), V(weight[y * p.kernel_width + x]), sum[0]);
        }
      }
    } else {
      constexpr int kPlaneLines = (kPlaneRows - 1) * S + kOwn;
      FASTACT_UNROLL for (int r = 0; r < kPlaneLines; ++r) {
        const C* line = from + (row * S + r) * p.line_stride;
        FASTACT_UNROLL for (int x = 0; x < kOwn; ++x) {
          const V v = V::load(line + x % S * p.phase_stride + x / S);
          FASTACT_UNROLL for (int i = 0; i < kPlaneRows; ++i) {
            const int y = r - i * S;
            if (y >= 0 && y < kOwn) {
              sum[i] = fma(v, V(weight[y * kOwn + x]), sum[i]);
            }
          }
        }
      }
    }
    FASTACT_UNROLL for (int i = 0; i < kPlaneRows; ++i) {
      if (i < rows) {
        store_lanes(sum[i], static_cast<C*>(p.to) + (row + i) * p.pixels + pixel, count);
      }
    }
  }

  // The lines of a plane, from one of them on, as plane_block() reads them.
  static void pad(const DepthwisePlane& p, const void* plane_, int64_t first, int64_t count) {
    const T* plane = static_cast<const T*>(plane_);
    C* lines = static_cast<C*>(p.lines);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t y = first + i - p.padding_height;
      C* to = lines + i * p.line_stride;
      const bool inside = y >= 0 && y < p.height;
      const T* from = plane + y * p.width;
      for (int64_t phase = 0; phase < p.stride_width; ++phase) {
        C* own = to + phase * p.phase_stride;
        // Place j of this phase is element j * stride + phase - padding of the line.
        int64_t j = 0;
        for (; j < p.phase_stride && (!inside || j * p.stride_width + phase < p.padding_width);
             ++j) {
          own[j] = 0;
        }
        const int64_t offset = phase - p.padding_width;
        const int64_t left = p.width - (j * p.stride_width + offset);
        int64_t n = left > 0 ? (left + p.stride_width - 1) / p.stride_width : 0;
        n = n < p.phase_stride - j ? n : p.phase_stride - j;
        if (inside) {
          const T* first_of = from + j * p.stride_width + offset;
          if (p.stride_width == 1) {
            for_each_vector<V>(n, [&](int64_t q, auto lanes) FASTACT_LAMBDA {
              store_lanes(load_lanes<V>(first_of + q, lanes), own + j + q, lanes);
            });
          } else {
            for (int64_t q = 0; q < n; ++q) {
              own[j + q] = static_cast<C>(load_scalar(first_of + q * p.stride_width));
            }
          }
          j += n;
        }
        for (; j < p.phase_stride; ++j) {
          own[j] = 0;
        }
      }
    }
  }

  static void plane(const DepthwisePlane& p) {
    for (int64_t row = 0; row < p.rows; row += kPlaneRows) {
      const int rows = p.rows - row < kPlaneRows ? static_cast<int>(p.rows - row) : kPlaneRows;
      for_each_vector<V>(p.pixels, [&](int64_t pixel, auto count)
                                       FASTACT_LAMBDA { plane_block(p, row, rows, pixel, count); });
    }
  }
};

template <class T, int F, int S>
constexpr DepthwiseKernels kDepthwiseKernels = {
    Depthwise<T, F, S>::kRows, &Depthwise<T, F, S>::band,  Depthwise<T, F, S>::kPlaneRows,
    Vec<compute_t<T>>::size,   &Depthwise<T, F, S>::plane, &Depthwise<T, F, S>::pad,
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
