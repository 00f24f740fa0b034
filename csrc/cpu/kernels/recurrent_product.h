// Recurrent layers: weights in strips, and products with them.
#pragma once

#include <type_traits>

#include "cpu/kernels/gemm_tile.h"
#include "cpu/kernels/loops.h"
#include "cpu/kernels/recurrent_table.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// A matrix of weights is packed in strips: as many neighbouring columns as a micro-tile is wide,
// for one k after the other, so that each strip is read in order, and the next one behind it.
//
// Every element of a product is the sum of its blocks of k in their order, and each block one chain
// of fused multiply-adds in the order of k, whatever rows and columns are computed beside it.

// Registers of a strip: of a row of the micro-tile, as the matrix product's.
template <class C>
constexpr int kStripRegisters = Gemm<C>::kWidth;

// Units of a panel: all gates of them lie side by side. One gate's fill a cache line, so that even
// H = 20 is not padded to much more; a plain cell's fill two, for two strips.
template <class C>
constexpr int kUnitsOfLine = 64 / sizeof(C);
template <class C>
constexpr int kPanelUnits[kNumRecurrentCells] = {2 * kUnitsOfLine<C>, 2 * kUnitsOfLine<C>,
                                                 kUnitsOfLine<C>, kUnitsOfLine<C>,
                                                 2 * kUnitsOfLine<C>};

template <class C>
void pack_gates(RecurrentCell cell, const void* w_, int64_t hidden, int64_t k, int64_t first,
                int64_t last, void* packed_) {
  using V = Vec<C>;
  constexpr int kStrip = kStripRegisters<C> * V::size;
  const C* w = static_cast<const C*>(w_);
  const int64_t units = kPanelUnits<C>[cell];
  const int64_t width = kRecurrentGates[cell] * units;
  for (int64_t panel = first; panel < last; ++panel) {
    C* to_panel = static_cast<C*>(packed_) + panel * width * k;
    for (int64_t column = 0; column < width; column += V::size) {
      const int64_t strip = column / kStrip * kStrip;
      const int64_t stride = width - strip < kStrip ? width - strip : kStrip;
      const int64_t unit = panel * units + column % units;
      const int64_t left = hidden - unit;
      const C* from = w + (column / units * hidden + unit) * k;
      C* to = to_panel + strip * k + (column - strip);
      for (int64_t at = 0; at < k; at += V::size) {
        const int count = k - at >= V::size ? V::size : static_cast<int>(k - at);
        V rows[V::size];
        for (int i = 0; i < V::size; ++i) {
          rows[i] = i < left ? load_lanes<V>(from + i * k + at, count) : V(0);
        }
        transpose(rows);
        for (int i = 0; i < count; ++i) {
          rows[i].store(to + (at + i) * stride);
        }
      }
    }
  }
}

// Rows that are read at a time: strip by strip, every line would come from another page.
constexpr int64_t kRowsOfPack = 32;

template <class C>
void pack_strips(const void* b_, int64_t k, int64_t n, int64_t first, int64_t last, void* packed_) {
  using V = Vec<C>;
  constexpr int64_t kStrip = kStripRegisters<C> * V::size;
  for (int64_t begin = 0; begin < k; begin += kRowsOfPack) {
    const int64_t end = k - begin < kRowsOfPack ? k : begin + kRowsOfPack;
    for (int64_t strip = first; strip < last; ++strip) {
      const C* from = static_cast<const C*>(b_) + begin * n + strip * kStrip;
      C* to = static_cast<C*>(packed_) + (strip * k + begin) * kStrip;
      for (int64_t at = begin; at < end; ++at, from += n, to += kStrip) {
        for (int64_t column = 0; column < kStrip; column += V::size) {
          const int64_t left = n - strip * kStrip - column;
          const V row = left >= V::size ? V::load(from + column)
                        : left > 0      ? V::load(from + column, static_cast<int>(left))
                                        : V(0);
          row.store(to + column);
        }
      }
    }
  }
}

// How far ahead a strip is fetched: weights that do not fit the L2 come from the L3, which takes
// some 150 cycles, 40 rows of four.
constexpr int64_t kStripBytesAhead = 4096;

// MR rows by S strips of NV registers from `column` on, in the block of k that begins at `first`;
// `count` lanes of the last register.
template <class C, int MR, int NV, int S, class Count>
FASTACT_FN void multiply_block(const RecurrentProduct& p, int64_t row, int64_t column, const C* b,
                               int64_t first, int64_t last, Count count) {
  using V = Vec<C>;
  const C* a = static_cast<const C*>(p.a) + row * p.a_stride;
  const char* ahead = reinterpret_cast<const char*>(b + first * p.b_stride);
  ahead += p.strip_stride == NV * V::size ? 8 * p.b_stride * int64_t{sizeof(C)} : kStripBytesAhead;
  constexpr int kWidth = S * NV;
  V sum[MR][kWidth];
  FASTACT_UNROLL for (int i = 0; i < MR; ++i) {
    FASTACT_UNROLL for (int j = 0; j < kWidth; ++j) sum[i][j] = V(0);
  }
  const auto left = [&](int i, int64_t k) FASTACT_LAMBDA { return V(a[i * p.a_stride + k]); };
  const auto right = [&](int j, int64_t k) FASTACT_LAMBDA {
    const C* from = b + j / NV * p.strip_stride + k * p.b_stride + j % NV * V::size;
    return j + 1 < kWidth ? V::load(from) : load_lanes<V>(from, count);
  };
  for (int64_t k = first; k < last; ++k) {
    if constexpr (MR > kWidth) {  // the registers hold the fewer of the two
      V r[kWidth];
      FASTACT_UNROLL for (int j = 0; j < kWidth; ++j) r[j] = right(j, k);
      FASTACT_UNROLL for (int i = 0; i < MR; ++i) {
        const V l = left(i, k);
        FASTACT_UNROLL for (int j = 0; j < kWidth; ++j) sum[i][j] = fma(l, r[j], sum[i][j]);
      }
    } else {
      V l[MR];
      FASTACT_UNROLL for (int i = 0; i < MR; ++i) l[i] = left(i, k);
      FASTACT_UNROLL for (int j = 0; j < kWidth; ++j) {
        const V r = right(j, k);
        FASTACT_UNROLL for (int i = 0; i < MR; ++i) sum[i][j] = fma(l[i], r, sum[i][j]);
      }
    }
    FASTACT_UNROLL for (int s = 0; s < S; ++s) {
      FASTACT_UNROLL for (size_t at = 0; at < NV * sizeof(V); at += 64) {
        __builtin_prefetch(ahead + s * p.strip_stride * int64_t{sizeof(C)} + at);
      }
    }
    ahead += p.b_stride * sizeof(C);
  }
  C* c = static_cast<C*>(p.c) + row * p.c_stride + column;
  FASTACT_UNROLL for (int i = 0; i < MR; ++i) {
    FASTACT_UNROLL for (int j = 0; j < kWidth; ++j) {
      C* to = c + i * p.c_stride + j * V::size;
      if (j + 1 < kWidth) {
        (first ? V::load(to) + sum[i][j] : sum[i][j]).store(to);
      } else {
        store_lanes(first ? load_lanes<V>(to, count) + sum[i][j] : sum[i][j], to, count);
      }
    }
  }
}

// Rows [row, end) by S strips, in blocks of at most MR rows that are alike: 8 are 4 and 4, since
// sums of 2 rows would wait for each other.
template <class C, int MR, int NV, int S, class Count>
void multiply_strips(const RecurrentProduct& p, int64_t column, const C* b, Count count) {
  int64_t first = 0;
  do {
    const int64_t last = p.k - first < Gemm<C>::kBlock ? p.k : first + Gemm<C>::kBlock;
    int64_t row = 0;
    for (int64_t blocks = (p.rows + MR - 1) / MR; blocks > 0; --blocks) {
      const int64_t rows = (p.rows - row + blocks - 1) / blocks;
      const auto run = [&](auto height) FASTACT_LAMBDA {
        multiply_block<C, decltype(height)::value, NV, S>(p, row, column, b, first, last, count);
      };
      if (rows == MR) {
        run(std::integral_constant<int, MR>());
      } else if constexpr (MR > 3) {
        if (rows == 5) {
          run(std::integral_constant<int, 5>());
        } else if (rows == 4) {
          run(std::integral_constant<int, 4>());
        } else {
          run(std::integral_constant<int, 3>());  // 7 are 4 and 3
        }
      }
      row += rows;
    }
    first = last;
  } while (first < p.k);
}

// By what the product has of rows: few of them take several strips at a time, so that there are
// enough sums to keep the multipliers busy.
template <class C, int MR, int S>
void multiply_rows_of(const RecurrentProduct& p) {
  using V = Vec<C>;
  constexpr int NV = kStripRegisters<C>;
  const C* b = static_cast<const C*>(p.b);
  int64_t column = 0;
  const auto run = [&](auto registers, auto strips, auto count) FASTACT_LAMBDA {
    constexpr int kStrips = decltype(strips)::value;
    multiply_strips<C, MR, decltype(registers)::value, kStrips>(p, column, b, count);
    column += kStrips * decltype(registers)::value * V::size;
    b += kStrips * p.strip_stride;
  };
  using One = std::integral_constant<int, 1>;
  while (p.columns - column >= S * NV * V::size) {
    run(std::integral_constant<int, NV>(), std::integral_constant<int, S>(), WholeVector<V>());
  }
  if constexpr (S > 1) {
    while (p.columns - column >= NV * V::size) {
      run(std::integral_constant<int, NV>(), One(), WholeVector<V>());
    }
  }
  // The last strip is narrower. Its rows may end within a register where it is not packed.
  const int64_t left = p.columns - column;
  const int registers = static_cast<int>((left + V::size - 1) / V::size);
  const int count = static_cast<int>(left - (registers - 1) * V::size);
  const auto last = [&](auto width) FASTACT_LAMBDA {
    count == V::size ? run(width, One(), WholeVector<V>()) : run(width, One(), count);
  };
  if constexpr (NV == 4) {
    if (registers == 4) {
      return last(std::integral_constant<int, 4>());
    }
    if (registers == 3) {
      return last(std::integral_constant<int, 3>());
    }
  }
  if (registers == 2) {
    last(std::integral_constant<int, 2>());
  } else if (registers == 1) {
    last(One());
  }
}

template <class C>
void multiply(const RecurrentProduct& p) {
  switch (p.rows) {
    case 1:
      return multiply_rows_of<C, 1, 4>(p);
    case 2:
      return multiply_rows_of<C, 2, 2>(p);
    case 3:
      return multiply_rows_of<C, 3, 2>(p);
    default:
      return multiply_rows_of<C, 6, 1>(p);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
