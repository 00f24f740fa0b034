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

#include "cpu/kernels/kernel_table.h"
#include "cpu/simd/width.h"
#include "math/compute_type.h"

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
  // Units of k at a time, KC: a panel's part (32 KiB) and the rows that meet it stay in the
  // L2, and sums of blocks round less than one long chain: at k = 4096 in float32
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

// Prefetch plan for operands beyond L2. The hardware prefetcher does not follow them: rows of a and
// c lie in pages of their own, and a panel's next block is needed all at once. A few cache lines at
// a time: more would stall. On one core of a Zen 5 1024^3 takes 8.9 ms, 512x4096x1024 17.8 and
// 128x1024x4096 4.45 (94 to 96 % of the peak); without it was 9.3, 19.6 and 4.82.
struct Prefetch {
  bool a;              // the rows after these
  const char* b;       // the panel's next block
  uint64_t line;       // the first of its cache lines to prefetch
  uint64_t lines;      // per cache line of a
  const char* stored;  // where a row of the tile is to be stored, or null
  int64_t stored_bytes;
};

// Few rows read b faster than that: one row by [4096, 1024] takes 165 us so, 87 without.
constexpr uint64_t kMostLinesPrefetched = 4;
constexpr int64_t kL2Bytes = 512 << 10;  // what a tile's operands may take of it

// MR rows of NV registers: c = bias + a b in the `first` block of k, c = c + a b in others.
template <class T, int MR, int NV>
FASTACT_FN void micro_kernel(const char* a, int64_t row_bytes, const char* b, int64_t b_bytes,
                             int64_t units, bool first, const compute_t<T>* bias, bool per_row,
                             compute_t<T>* c, int64_t c_stride, const Prefetch& prefetch) {
  using G = Gemm<T>;
  using V = typename G::V;
  using C = typename G::C;
  // Units in a cache line of a. A last few rows are multiplied without prefetch: one row alone
  // is read faster so.
  constexpr bool kPrefetches = MR >= 6;
  constexpr int64_t kLine = kPrefetches ? 64 / G::kUnitBytes : G::kBlock;
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
    if constexpr (kPrefetches) {
      if (prefetch.a) {
        FASTACT_UNROLL for (int i = 0; i < MR; ++i) __builtin_prefetch(a + (MR + i) * row_bytes);
      }
      for (uint64_t i = 0; i < prefetch.lines; ++i) {
        const uint64_t at = prefetch.line + line * prefetch.lines + i;
        __builtin_prefetch(prefetch.b + at / kLinesOfB * b_bytes + at % kLinesOfB * 64, 0, 2);
      }
      if (prefetch.stored && line < MR) {
        const char* row = prefetch.stored + line * prefetch.stored_bytes;
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
        // The panel comes from the L2: eight rows ahead hides its latency.
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
                   compute_t<T>* c, int64_t c_stride, bool beyond_l2, const char* stored,
                   int64_t stored_bytes) {
  using G = Gemm<T>;
  // As many rows as fill the registers with sums: 24 of 32, 12 of 16.
  constexpr int kRows = NV * 2 <= G::kWidth ? 12 : 6;
  constexpr uint64_t kLinesOfA = G::kBlock * G::kUnitBytes / 64;  // in a block of a row of a
  Prefetch prefetch{beyond_l2, b + units * b_bytes, 0, 0, stored, stored_bytes};
  if (beyond_l2) {
    const uint64_t lines_of_b = units * ((NV * sizeof(typename G::V) + 63) / 64);
    const uint64_t turns = (rows + kRows - 1) / kRows * kLinesOfA;
    const uint64_t lines = (lines_of_b + turns - 1) / turns;
    prefetch.lines = lines <= kMostLinesPrefetched ? lines : 0;
  }
  const auto run = [&](auto count) FASTACT_LAMBDA {
    constexpr int MR = decltype(count)::value;
    micro_kernel<T, MR, NV>(a, row_bytes, b, b_bytes, units, first, bias, per_row, c, c_stride,
                            prefetch);
    a += MR * row_bytes;
    c += MR * c_stride;
    prefetch.line += prefetch.lines * kLinesOfA;
    if (prefetch.stored) {
      prefetch.stored += MR * stored_bytes;
    }
    if (bias && per_row) {
      bias += MR;
    }
    rows -= MR;
  };
  while (rows > 0) {
    // The last two blocks are alike: on AVX-512 8 rows take 93 % of the peak as 4 and 4, 85 % as 6
    // and 2, whose sums wait for each other (H = 256, Zen 4).
    const bool two_left = kRows == 6 && rows > kRows && rows < 2 * kRows;
    switch (two_left ? (rows + 1) / 2 : rows >= kRows ? kRows : rows > 6 ? 6 : rows) {
      case 12:
        if constexpr (kRows == 12) {
          run(std::integral_constant<int, 12>());
        }
        break;
      case 6:
        run(std::integral_constant<int, 6>());
        break;
      case 5:
        run(std::integral_constant<int, 5>());
        break;
      case 4:
        run(std::integral_constant<int, 4>());
        break;
      case 3:
        run(std::integral_constant<int, 3>());
        break;
      case 2:
        run(std::integral_constant<int, 2>());
        break;
      default:
        run(std::integral_constant<int, 1>());
    }
  }
}

template <class T>
void gemm_tile(const GemmTile& t) {
  using G = Gemm<T>;
  using C = typename G::C;
  constexpr int kStep = G::kWidth * G::V::size;
  const C* bias = static_cast<const C*>(t.bias);
  const bool beyond_l2 = t.units * (t.rows + G::kPanel) * G::kUnitBytes > kL2Bytes;
  int64_t k = 0;
  do {
    const int64_t units = t.units - k < G::kBlock ? t.units - k : G::kBlock;
    const char* a = static_cast<const char*>(t.a) + k * G::kUnitBytes;
    const char* b = static_cast<const char*>(t.b) + k * t.b_bytes;
    for (int column = 0; column < t.columns; column += kStep) {
      const int registers = (t.columns - column + G::V::size - 1) / G::V::size;
      const C* own_bias = bias && !t.bias_per_row ? bias + column : bias;
      const bool last = beyond_l2 && k + units == t.units && t.stored;
      const char* stored = last ? static_cast<const char*>(t.stored) + column * sizeof(T) : nullptr;
      const auto run = [&](auto width) FASTACT_LAMBDA {
        multiply_rows<T, decltype(width)::value>(
            a, t.row_bytes, b + column * G::kUnitBytes, t.b_bytes, units, t.rows,
            k == 0 && !t.accumulate, own_bias, t.bias_per_row, static_cast<C*>(t.c) + column,
            t.c_stride, beyond_l2, stored, t.stored_bytes);
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

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
