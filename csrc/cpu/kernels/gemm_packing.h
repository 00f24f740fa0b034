// Packing for matrix products: panels of b, and rows of a as units (see gemm_tile.h).
#pragma once

#include "cpu/kernels/gemm_tile.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// V::size units of one row from element k on; those past the row's end are 0.
template <class T>
FASTACT_FN typename Gemm<T>::V load_units(const T* row, int64_t elements_left) {
  using G = Gemm<T>;
  constexpr int kElements = G::V::size * G::kDepth;
  if constexpr (G::kPairs) {
    return elements_left >= kElements ? load_pairs(row)
                                      : load_pairs(row, static_cast<int>(elements_left));
  } else {
    return elements_left >= kElements ? G::V::load(row)
                                      : G::V::load(row, static_cast<int>(elements_left));
  }
}

// Unit `unit` of a row whose elements are `stride` apart.
template <class T>
FASTACT_FN compute_t<T> gather_unit(const T* row, int64_t stride, int64_t unit, int64_t k) {
  using G = Gemm<T>;
  if constexpr (G::kPairs) {
    const uint16_t low = row[2 * unit * stride].bits;
    const uint16_t high = 2 * unit + 1 < k ? row[(2 * unit + 1) * stride].bits : 0;
    return bits_as_float(low | static_cast<uint32_t>(high) << 16);
  } else {
    return static_cast<compute_t<T>>(load_scalar(row + unit * stride));
  }
}

// Unit `unit` of `count` neighbouring rows: element (i, k) of them lies at first[i + k * k_stride].
template <class T>
FASTACT_FN typename Gemm<T>::V load_rows(const T* first, int64_t k_stride, int64_t unit, int64_t k,
                                         int count) {
  using G = Gemm<T>;
  using V = typename G::V;
  const T* low = first + unit * G::kDepth * k_stride;
  if constexpr (G::kPairs) {
    const T* high = 2 * unit + 1 < k ? low + k_stride : nullptr;
    return interleave_pairs(low, high, count);
  } else {
    return count == V::size ? V::load(low) : V::load(low, count);
  }
}

template <class T>
int64_t gemm_units(int64_t k) {
  return (k + Gemm<T>::kDepth - 1) / Gemm<T>::kDepth;
}

// Where elements that are packed together lie far apart, this many rows of memory are packed, some
// columns after the others, before the next rows: few pages are in use at a time. Panels of
// [1024, 4096] numbers took 1,790 us without in float32, 905 in bfloat16, and take 820 and 260;
// rows of their transpose 1,430 and 1,090, and now 1,180 and 580 (one core of a Zen 5).
constexpr int64_t kPackedTogether = 64;

// The processor does not see that the rows of one panel follow each other: they are prefetched
// this many units ahead. The input's gradient at 128x1024x4096 in bfloat16 takes 1.4 to 1.6 ms with
// it, 1.8 without (2 threads, Zen 5).
constexpr int64_t kUnitsAhead = 16;

// Columns of b in a register of one panel, from `column` on.
template <class T>
FASTACT_FN int panel_columns(int64_t n, int64_t panel, int column) {
  using G = Gemm<T>;
  const int64_t left = n - (panel * G::kPanel + column);
  return left >= G::V::size ? G::V::size : left > 0 ? static_cast<int>(left) : 0;
}

// Panels of b whose rows have neighbouring elements.
template <class T>
void pack_panels_by_rows(const T* b, int64_t k_stride, int64_t k, int64_t n, int64_t first,
                         int64_t last, compute_t<T>* packed) {
  using G = Gemm<T>;
  using V = typename G::V;
  const int64_t units = gemm_units<T>(k);
  for (int64_t begin = 0; begin < units; begin += kPackedTogether) {
    const int64_t end = units - begin < kPackedTogether ? units : begin + kPackedTogether;
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t unit = begin; unit < end; ++unit) {
        compute_t<T>* to = packed + (panel * units + unit) * G::kPanel;
        const char* ahead = reinterpret_cast<const char*>(
            b + panel * G::kPanel + (unit + kUnitsAhead) * G::kDepth * k_stride);
        FASTACT_UNROLL for (int row = 0; row < G::kDepth; ++row) {
          for (size_t at = 0; at < G::kPanel * sizeof(T); at += 64) {
            __builtin_prefetch(ahead + row * k_stride * sizeof(T) + at);
          }
        }
        FASTACT_UNROLL for (int column = 0; column < G::kPanel; column += V::size) {
          const int count = panel_columns<T>(n, panel, column);
          if (count > 0) {
            load_rows(b + panel * G::kPanel + column, k_stride, unit, k, count).store(to + column);
          }
        }
      }
    }
  }
}

// The panels [first, last) of b: k rows and n columns, each `k_stride` and `n_stride` elements
// apart. Columns past the n-th are 0 up to a register's end; nothing is written behind that.
template <class T>
void pack_panels(const void* b_, int64_t k_stride, int64_t n_stride, int64_t k, int64_t n,
                 int64_t first, int64_t last, void* packed_) {
  using G = Gemm<T>;
  using V = typename G::V;
  using C = typename G::C;
  const T* b = static_cast<const T*>(b_);
  C* packed = static_cast<C*>(packed_);
  if (n_stride == 1 && k_stride != 1) {
    return pack_panels_by_rows(b, k_stride, k, n, first, last, packed);
  }
  const int64_t units = gemm_units<T>(k);
  for (int64_t panel = first; panel < last; ++panel) {
    C* to = packed + panel * units * G::kPanel;
    for (int column = 0; column < G::kPanel; column += V::size) {
      const int count = panel_columns<T>(n, panel, column);
      if (count == 0) {
        break;
      }
      const T* from = b + (panel * G::kPanel + column) * n_stride;
      if (k_stride == 1) {
        for (int64_t unit = 0; unit < units; unit += V::size) {
          V rows[V::size];
          for (int i = 0; i < V::size; ++i) {
            rows[i] = i < count
                          ? load_units(from + i * n_stride + unit * G::kDepth, k - unit * G::kDepth)
                          : V(C(0));
          }
          transpose(rows);
          for (int i = 0; i < V::size && unit + i < units; ++i) {
            rows[i].store(to + (unit + i) * G::kPanel + column);
          }
        }
      } else {
        for (int64_t unit = 0; unit < units; ++unit) {
          for (int i = 0; i < V::size; ++i) {
            to[unit * G::kPanel + column + i] =
                i < count ? gather_unit(from + i * n_stride, k_stride, unit, k) : C(0);
          }
        }
      }
    }
  }
}

// Rows of a whose elements at one k are neighbours: a transposed matrix. Packs whole registers of
// rows from `first` on, and returns the first row left.
template <class T>
int64_t pack_columns(const T* a, int64_t k_stride, int64_t k, int64_t first, int64_t last,
                     compute_t<T>* packed, int64_t packed_stride) {
  using V = typename Gemm<T>::V;
  const int64_t units = gemm_units<T>(k);
  const int64_t whole = first + (last - first) / V::size * V::size;
  for (int64_t block = first; block < whole; block += kPackedTogether) {
    const int64_t block_end = whole - block < kPackedTogether ? whole : block + kPackedTogether;
    for (int64_t begin = 0; begin < units; begin += kPackedTogether) {
      const int64_t end = units - begin < kPackedTogether ? units : begin + kPackedTogether;
      for (int64_t row = block; row < block_end; row += V::size) {
        for (int64_t unit = begin; unit < end; unit += V::size) {
          V columns[V::size];
          for (int i = 0; i < V::size; ++i) {
            columns[i] =
                unit + i < units ? load_rows(a + row, k_stride, unit + i, k, V::size) : V(0);
          }
          transpose(columns);
          const int count = units - unit >= V::size ? V::size : static_cast<int>(units - unit);
          for (int i = 0; i < V::size; ++i) {
            compute_t<T>* to = packed + (row + i) * packed_stride + unit;
            count == V::size ? columns[i].store(to) : columns[i].store(to, count);
          }
        }
      }
    }
  }
  return whole;
}

// The rows [first, last) of a, each as units one after the other.
template <class T>
void pack_rows(const void* a_, int64_t row_stride, int64_t k_stride, int64_t k, int64_t first,
               int64_t last, void* packed_, int64_t packed_bytes) {
  using G = Gemm<T>;
  using V = typename G::V;
  using C = typename G::C;
  const T* a = static_cast<const T*>(a_);
  C* packed = static_cast<C*>(packed_);
  const int64_t units = gemm_units<T>(k);
  const int64_t packed_stride = packed_bytes / int64_t{sizeof(C)};
  int64_t row =
      row_stride == 1 ? pack_columns(a, k_stride, k, first, last, packed, packed_stride) : first;
  for (; row < last; ++row) {
    const T* from = a + row * row_stride;
    C* to = packed + row * packed_stride;
    for (int64_t unit = 0; unit < units; unit += V::size) {
      const int count = units - unit >= V::size ? V::size : static_cast<int>(units - unit);
      if (k_stride == 1) {
        const V v = load_units(from + unit * G::kDepth, k - unit * G::kDepth);
        count == V::size ? v.store(to + unit) : v.store(to + unit, count);
      } else {
        for (int i = 0; i < count; ++i) {
          to[unit + i] = gather_unit(from, k_stride, unit + i, k);
        }
      }
    }
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
