// Matrix products on raw pointers: c = a b + bias, tile by tile, so that linear layers,
// convolutions and recurrent cells can each lay out a and b, split the work and finish a tile as
// they need.
//
// b is packed in panels: kPanel neighbouring columns, for one unit of k after the other, so that
// the innermost loop reads it in order. a is read row by row as it lies. A unit is what one
// multiply-add takes from k: an element, or two neighbouring bfloat16 numbers where the processor
// multiplies those in pairs. 16-bit types that it does not multiply are widened by the packing.
//
// Every element of c is the sum, in the order of k, of one chain of fused multiply-adds for each
// block of k, whatever tile, thread or batch it belongs to, except by gemm_rows().
#pragma once

#include <type_traits>

#include "cpu/kernels/compute_type.h"
#include "cpu/kernels/tables.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class T>
struct Gemm {
  using C = compute_t<T>;
  using V = Vec<C>;
  static constexpr bool kPairs = kHasDotPairs && std::is_same<T, BFloat16>::value;
  static constexpr int kDepth = kPairs ? 2 : 1;  // elements of k in a unit
  // One unit, in memory and, as its bits, in a lane.
  static constexpr int kUnitBytes = sizeof(C);
  static constexpr int kPanel = 256 / sizeof(C);
  static constexpr int kRegisters = sizeof(V) == 64 ? 32 : 16;
  static constexpr int kWidth = kRegisters == 32 ? 4 : 2;  // registers of a row of a micro-tile
  // Units of k at a time: a panel's part (32 KiB) and the rows that meet it stay in the
  // second-level cache, and sums of blocks round less than one long chain: at k = 4096 in float32
  // by a factor of five (root mean square), to 0.87 of PyTorch's product. Blocks of 256 and of 1024
  // were no faster (Zen 5).
  static constexpr int64_t kBlock = 128;

  static FASTACT_FN V multiply_add(V a, V b, V c) {
    if constexpr (kPairs) {
      return dot_pairs(a, b, c);
    } else {
      return fma(a, b, c);
    }
  }
};

// ---- the micro-kernel --------------------------------------------------------------------------

// What micro-kernels ask for while they multiply, where the second-level cache does not hold it
// all. The processor does not fetch it by itself: rows of a and c lie in pages of their own, and a
// panel's next block is wanted all at once. A few cache lines at a time: more are waited for. On
// one core of a Zen 5 1024^3 takes 8.9 ms, 512x4096x1024 17.8 and 128x1024x4096 4.45 (94 to 96 % of
// the peak); without it was 9.3, 19.6 and 4.82.
struct Ahead {
  bool a;              // the rows after these
  const char* b;       // the panel's next block
  uint64_t line;       // the first of its cache lines that is to be asked for
  uint64_t lines;      // to ask for beside a cache line of a
  const char* stored;  // where a row of the tile is to be stored, or null
  int64_t stored_bytes;
};

// Few rows read b faster than that: one row by [4096, 1024] takes 165 us so, 87 without.
constexpr uint64_t kMostLinesAhead = 4;
constexpr int64_t kSecondLevelCache = 512 << 10;  // what a tile's operands may take of it

// MR rows of NV registers: c = bias + a b in the `first` block of k, c = c + a b in others.
template <class T, int MR, int NV>
FASTACT_FN void micro_kernel(const char* a, int64_t row_bytes, const char* b, int64_t b_bytes,
                             int64_t units, bool first, const compute_t<T>* bias, bool per_row,
                             compute_t<T>* c, int64_t c_stride, const Ahead& ahead) {
  using G = Gemm<T>;
  using V = typename G::V;
  using C = typename G::C;
  // Units in a cache line of a. A last few rows are multiplied without a look ahead: one row alone
  // is read faster so.
  constexpr bool kLooksAhead = MR >= 6;
  constexpr int64_t kLine = kLooksAhead ? 64 / G::kUnitBytes : G::kBlock;
  constexpr uint64_t kLinesOfB = (NV * sizeof(V) + 63) / 64;  // in a row of b
  V sum[MR][NV];
  FASTACT_UNROLL for (int i = 0; i < MR; ++i) {
    FASTACT_UNROLL for (int j = 0; j < NV; ++j) {
      if (!first || !bias) {
        sum[i][j] = V(C(0));
      } else {
        sum[i][j] = per_row ? V(bias[i]) : V::load(bias + j * V::size);
      }
    }
  }
  for (int64_t line = 0; line * kLine < units; ++line) {
    if constexpr (kLooksAhead) {
      if (ahead.a) {
        FASTACT_UNROLL for (int i = 0; i < MR; ++i) __builtin_prefetch(a + (MR + i) * row_bytes);
      }
      for (uint64_t i = 0; i < ahead.lines; ++i) {
        const uint64_t at = ahead.line + line * ahead.lines + i;
        __builtin_prefetch(ahead.b + at / kLinesOfB * b_bytes + at % kLinesOfB * 64, 0, 2);
      }
      if (ahead.stored && line < MR) {
        const char* row = ahead.stored + line * ahead.stored_bytes;
        FASTACT_UNROLL for (size_t at = 0; at < NV * V::size * sizeof(T); at += 64) {
          __builtin_prefetch(row + at, 1);
        }
      }
    }
    const int64_t left_units = units - line * kLine;
    for (int64_t k = 0; k < (left_units < kLine ? left_units : kLine); ++k) {
      V right[NV];
      FASTACT_UNROLL for (int j = 0; j < NV; ++j) {
        right[j] = V::load(reinterpret_cast<const C*>(b) + j * V::size);
        // The panel comes from the second-level cache: eight rows ahead hides its latency.
        __builtin_prefetch(b + 8 * b_bytes + j * static_cast<int>(sizeof(V)));
      }
      FASTACT_UNROLL for (int i = 0; i < MR; ++i) {
        C unit;
        memcpy(&unit, a + i * row_bytes, sizeof unit);
        const V left(unit);
        FASTACT_UNROLL for (int j = 0; j < NV; ++j) {
          sum[i][j] = G::multiply_add(left, right[j], sum[i][j]);
        }
      }
      a += G::kUnitBytes;
      b += b_bytes;
    }
  }
  FASTACT_UNROLL for (int i = 0; i < MR; ++i) {
    FASTACT_UNROLL for (int j = 0; j < NV; ++j) {
      C* to = c + i * c_stride + j * V::size;
      (first ? sum[i][j] : V::load(to) + sum[i][j]).store(to);
    }
  }
}

// The rows of one block of k against NV registers of columns.
template <class T, int NV>
void multiply_rows(const char* a, int64_t row_bytes, const char* b, int64_t b_bytes, int64_t units,
                   int64_t rows, bool first, const compute_t<T>* bias, bool per_row,
                   compute_t<T>* c, int64_t c_stride, bool look_ahead, const char* stored,
                   int64_t stored_bytes) {
  using G = Gemm<T>;
  // As many rows as fill the registers with sums: 24 of 32, 12 of 16.
  constexpr int kRows = NV * 2 <= G::kWidth ? 12 : 6;
  constexpr uint64_t kLinesOfA = G::kBlock * G::kUnitBytes / 64;  // in a block of a row of a
  Ahead ahead{look_ahead, b + units * b_bytes, 0, 0, stored, stored_bytes};
  if (look_ahead) {
    const uint64_t lines_of_b = units * ((NV * sizeof(typename G::V) + 63) / 64);
    const uint64_t turns = (rows + kRows - 1) / kRows * kLinesOfA;
    const uint64_t lines = (lines_of_b + turns - 1) / turns;
    ahead.lines = lines <= kMostLinesAhead ? lines : 0;
  }
  const auto run = [&](auto count) FASTACT_LAMBDA {
    constexpr int MR = decltype(count)::value;
    micro_kernel<T, MR, NV>(a, row_bytes, b, b_bytes, units, first, bias, per_row, c, c_stride,
                            ahead);
    a += MR * row_bytes;
    c += MR * c_stride;
    ahead.line += ahead.lines * kLinesOfA;
    if (ahead.stored) {
      ahead.stored += MR * stored_bytes;
    }
    if (bias && per_row) {
      bias += MR;
    }
    rows -= MR;
  };
  while (rows >= kRows) {
    run(std::integral_constant<int, kRows>());
  }
  if (rows >= 6) {
    run(std::integral_constant<int, 6>());
  }
  switch (rows) {
    case 5:
      return run(std::integral_constant<int, 5>());
    case 4:
      return run(std::integral_constant<int, 4>());
    case 3:
      return run(std::integral_constant<int, 3>());
    case 2:
      return run(std::integral_constant<int, 2>());
    case 1:
      return run(std::integral_constant<int, 1>());
    default:
      return;
  }
}

template <class T>
void gemm_tile(const GemmTile& t) {
  using G = Gemm<T>;
  using C = typename G::C;
  constexpr int kStep = G::kWidth * G::V::size;
  const C* bias = static_cast<const C*>(t.bias);
  const bool look_ahead = t.units * (t.rows + G::kPanel) * G::kUnitBytes > kSecondLevelCache;
  int64_t k = 0;
  do {
    const int64_t units = t.units - k < G::kBlock ? t.units - k : G::kBlock;
    const char* a = static_cast<const char*>(t.a) + k * G::kUnitBytes;
    const char* b = static_cast<const char*>(t.b) + k * t.b_bytes;
    for (int column = 0; column < t.columns; column += kStep) {
      const int registers = (t.columns - column + G::V::size - 1) / G::V::size;
      const C* own_bias = bias && !t.bias_per_row ? bias + column : bias;
      const bool last = look_ahead && k + units == t.units && t.stored;
      const char* stored = last ? static_cast<const char*>(t.stored) + column * sizeof(T) : nullptr;
      const auto run = [&](auto width) FASTACT_LAMBDA {
        multiply_rows<T, decltype(width)::value>(
            a, t.row_bytes, b + column * G::kUnitBytes, t.b_bytes, units, t.rows,
            k == 0 && !t.accumulate, own_bias, t.bias_per_row, static_cast<C*>(t.c) + column,
            t.c_stride, look_ahead, stored, t.stored_bytes);
      };
      if (registers >= G::kWidth) {
        run(std::integral_constant<int, G::kWidth>());
      } else if (registers == 1) {
        run(std::integral_constant<int, 1>());
      } else if (registers == 2) {
        run(std::integral_constant<int, 2>());
      } else {
        run(std::integral_constant<int, 3>());
      }
    }
    k += units;
  } while (k < t.units);
}

// ---- packing -----------------------------------------------------------------------------------

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

// The processor does not see that the rows of one panel follow each other: they are asked for this
// many units ahead. The input's gradient at 128x1024x4096 in bfloat16 takes 1.4 to 1.6 ms with
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
                     compute_t<T>* packed) {
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
            compute_t<T>* to = packed + (row + i) * units + unit;
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
               int64_t last, void* packed_) {
  using G = Gemm<T>;
  using V = typename G::V;
  using C = typename G::C;
  const T* a = static_cast<const T*>(a_);
  C* packed = static_cast<C*>(packed_);
  const int64_t units = gemm_units<T>(k);
  int64_t row = row_stride == 1 ? pack_columns(a, k_stride, k, first, last, packed) : first;
  for (; row < last; ++row) {
    const T* from = a + row * row_stride;
    C* to = packed + row * units;
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

// ---- few rows ----------------------------------------------------------------------------------

// M rows of x by N rows of w, both with neighbouring elements of k: w is read once, as it lies.
// Each sum is formed in the lanes of one register.
template <class T, int M, int N>
FASTACT_FN void dot_rows(const T* x, int64_t x_stride, const T* w, int64_t w_stride, int64_t k,
                         const compute_t<T>* bias, compute_t<T>* c, int64_t c_stride) {
  using G = Gemm<T>;
  using V = typename G::V;
  using C = typename G::C;
  constexpr int kElements = V::size * G::kDepth;
  V sum[M * N];
  FASTACT_UNROLL for (int i = 0; i < M * N; ++i) sum[i] = V(C(0));
  const auto add = [&](int64_t e, const auto& load) FASTACT_LAMBDA {
    V left[M];
    FASTACT_UNROLL for (int i = 0; i < M; ++i) left[i] = load(x + i * x_stride + e);
    FASTACT_UNROLL for (int j = 0; j < N; ++j) {
      const V right = load(w + j * w_stride + e);
      FASTACT_UNROLL for (int i = 0; i < M; ++i) {
        sum[i * N + j] = G::multiply_add(left[i], right, sum[i * N + j]);
      }
    }
  };
  int64_t e = 0;
  for (; e + kElements <= k; e += kElements) {
    add(e, [](const T* p) FASTACT_LAMBDA { return load_units(p, kElements); });
  }
  if (e < k) {
    add(e, [&](const T* p) FASTACT_LAMBDA { return load_units(p, k - e); });
  }
  alignas(64) C sums[M * N];
  horizontal_sums(sum, sums);
  FASTACT_UNROLL for (int i = 0; i < M; ++i) {
    FASTACT_UNROLL for (int j = 0; j < N; ++j) {
      c[i * c_stride + j] = sums[i * N + j] + (bias ? bias[j] : C(0));
    }
  }
}

template <class T, int M>
void dot_all(const GemmRows& r) {
  // As many rows of w as the registers hold sums for.
  constexpr int kFit = (Gemm<T>::kRegisters == 32 ? 24 : 12) / M;
  constexpr int N = M == 1 ? 8 : kFit > 6 ? 6 : kFit < 1 ? 1 : kFit;
  using C = compute_t<T>;
  const T* x = static_cast<const T*>(r.x);
  const T* w = static_cast<const T*>(r.w);
  const C* bias = static_cast<const C*>(r.bias);
  C* c = static_cast<C*>(r.c);
  int64_t j = 0;
  for (; j + N <= r.columns; j += N) {
    dot_rows<T, M, N>(x, r.x_stride, w + j * r.w_stride, r.w_stride, r.k, bias ? bias + j : bias,
                      c + j, r.c_stride);
  }
  for (; j < r.columns; ++j) {
    dot_rows<T, M, 1>(x, r.x_stride, w + j * r.w_stride, r.w_stride, r.k, bias ? bias + j : bias,
                      c + j, r.c_stride);
  }
}

template <class T>
void gemm_rows(const GemmRows& r) {
  switch (r.rows) {
    case 1:
      return dot_all<T, 1>(r);
    case 2:
      return dot_all<T, 2>(r);
    case 3:
      return dot_all<T, 3>(r);
    case 4:
      return dot_all<T, 4>(r);
    case 5:
      return dot_all<T, 5>(r);
    case 6:
      return dot_all<T, 6>(r);
    case 7:
      return dot_all<T, 7>(r);
    default:
      return dot_all<T, kMaxGemmRows>(r);
  }
}

// ---- around a product --------------------------------------------------------------------------

// Rows of compute_t<T> into rows of T.
template <class T>
void store_rows(const void* tile_, int64_t tile_stride, int64_t rows, int64_t columns, void* c_,
                int64_t c_stride) {
  using V = Vec<compute_t<T>>;
  for (int64_t i = 0; i < rows; ++i) {
    const compute_t<T>* from = static_cast<const compute_t<T>*>(tile_) + i * tile_stride;
    T* to = static_cast<T*>(c_) + i * c_stride;
    int64_t j = 0;
    for (; j + V::size <= columns; j += V::size) {
      V::load(from + j).store(to + j);
    }
    if (j < columns) {
      const int rest = static_cast<int>(columns - j);
      V::load(from + j, rest).store(to + j, rest);
    }
  }
}

// The same with row i of the tile becoming column i of c. As many rows at a time as fill a cache
// line of c: its rows lie far apart, often in the few lines of one cache set.
template <class T>
void store_transposed(const void* tile_, int64_t tile_stride, int64_t rows, int64_t columns,
                      void* c_, int64_t c_stride) {
  using C = compute_t<T>;
  using V = Vec<C>;
  constexpr int kBlocks = sizeof(C) / sizeof(T);
  const C* tile = static_cast<const C*>(tile_);
  T* c = static_cast<T*>(c_);
  for (int64_t i = 0; i < rows; i += kBlocks * V::size) {
    for (int64_t j = 0; j < columns; j += V::size) {
      const int width = columns - j >= V::size ? V::size : static_cast<int>(columns - j);
      V block[kBlocks][V::size];
      int height[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        const int64_t first = i + b * V::size;
        const int64_t left = rows - first;
        height[b] = left >= V::size ? V::size : left > 0 ? static_cast<int>(left) : 0;
        for (int r = 0; r < V::size; ++r) {
          const C* from = tile + (first + r) * tile_stride + j;
          block[b][r] = r >= height[b]     ? V(C(0))
                        : width == V::size ? V::load(from)
                                           : V::load(from, width);
        }
        transpose(block[b]);
      }
      for (int r = 0; r < width; ++r) {
        T* to = c + (j + r) * c_stride + i;
        for (int b = 0; b < kBlocks; ++b, to += V::size) {
          height[b] == V::size ? block[b][r].store(to) : block[b][r].store(to, height[b]);
        }
      }
    }
  }
}

template <class T>
void add_to_tile(const void* x_, int64_t stride, int64_t rows, int64_t columns, void* tile_,
                 int64_t tile_stride) {
  using V = Vec<compute_t<T>>;
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = static_cast<const T*>(x_) + i * stride;
    compute_t<T>* tile = static_cast<compute_t<T>*>(tile_) + i * tile_stride;
    int64_t j = 0;
    for (; j + V::size <= columns; j += V::size) {
      (V::load(tile + j) + V::load(x + j)).store(tile + j);
    }
    if (j < columns) {
      const int rest = static_cast<int>(columns - j);
      (V::load(tile + j, rest) + V::load(x + j, rest)).store(tile + j, rest);
    }
  }
}

template <class T>
void widen_row(const void* x_, void* y_, int64_t n) {
  using V = Vec<compute_t<T>>;
  const T* x = static_cast<const T*>(x_);
  compute_t<T>* y = static_cast<compute_t<T>*>(y_);
  int64_t i = 0;
  for (; i + V::size <= n; i += V::size) {
    V::load(x + i).store(y + i);
  }
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    V::load(x + i, rest).store(y + i, rest);
  }
}

// Sums of a few rows are added up together with what each addition loses (Kahan): the sum of 32,768
// numbers of 0.1 is off by less than 1e-6 of it, in one chain by 2.5e-4.
constexpr int64_t kRowsOfOneChain = 8;

template <class T>
void add_rows(const void* x_, int64_t stride, int64_t rows, int64_t columns, void* sums_) {
  using V = Vec<compute_t<T>>;
  compute_t<T>* sums = static_cast<compute_t<T>*>(sums_);
  for (int64_t j = 0; j < columns; j += V::size) {
    const T* x = static_cast<const T*>(x_) + j;
    const int rest = columns - j >= V::size ? V::size : static_cast<int>(columns - j);
    const auto load = [&](int64_t i) FASTACT_LAMBDA {
      return rest == V::size ? V::load(x + i * stride) : V::load(x + i * stride, rest);
    };
    V sum = rest == V::size ? V::load(sums + j) : V::load(sums + j, rest);
    V plain = sum;
    V lost(0);
    for (int64_t i = 0; i < rows;) {
      const int64_t end = rows - i < kRowsOfOneChain ? rows : i + kRowsOfOneChain;
      V part = load(i);
      for (++i; i < end; ++i) {
        part = part + load(i);
      }
      const V term = part - lost;
      const V next = sum + term;
      lost = (next - sum) - term;
      sum = next;
      plain = plain + part;
    }
    // What an infinite sum loses is not a number.
    sum = select(sum <= sum, sum, plain);
    rest == V::size ? sum.store(sums + j) : sum.store(sums + j, rest);
  }
}

template <class T>
constexpr GemmKernels kGemmKernels = {
    Gemm<T>::kPanel,
    Gemm<T>::V::size,
    Gemm<T>::kUnitBytes,
    // Rows of T are rows of units where nothing is widened.
    std::is_same<T, compute_t<T>>::value || Gemm<T>::kPairs,
    Gemm<T>::kDepth,
    Gemm<T>::kBlock,
    &gemm_tile<T>,
    &pack_panels<T>,
    &pack_rows<T>,
    &gemm_rows<T>,
    &store_rows<T>,
    &store_transposed<T>,
    &add_to_tile<T>,
    &widen_row<T>,
    &add_rows<T>,
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
