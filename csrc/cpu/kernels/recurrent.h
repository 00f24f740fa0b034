// Recurrent layers on raw pointers: W_hh in panels, products of few rows, and the cells on the tile
// of a product.
#pragma once

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/loops.h"
#include "cpu/kernels/recurrent_table.h"
#include "math/recurrent.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Units of a panel: all gates of them lie side by side. One gate's fill a cache line, so that even
// H = 20 is not padded to much more; a plain cell's fill two, for micro-tiles of two registers.
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
  const C* w = static_cast<const C*>(w_);
  const int64_t gates = kRecurrentGates[cell];
  const int64_t units = kPanelUnits<C>[cell];
  const int64_t width = gates * units;
  for (int64_t panel = first; panel < last; ++panel) {
    C* to = static_cast<C*>(packed_) + panel * width * k;
    for (int64_t column = 0; column < width; column += V::size) {
      const int64_t unit = panel * units + column % units;
      const int64_t left = hidden - unit;
      const C* from = w + (column / units * hidden + unit) * k;
      for (int64_t at = 0; at < k; at += V::size) {
        const int count = k - at >= V::size ? V::size : static_cast<int>(k - at);
        V rows[V::size];
        for (int i = 0; i < V::size; ++i) {
          rows[i] = i < left ? load_lanes<V>(from + i * k + at, count) : V(0);
        }
        transpose(rows);
        for (int i = 0; i < count; ++i) {
          rows[i].store(to + (at + i) * width + column);
        }
      }
    }
  }
}

// ---- products of few rows
// ------------------------------------------------------------------------

// Registers of columns that fill the registers with sums: with two, as gemm_tile.h has for many
// rows, every sum would wait for the one before.
template <int MR>
constexpr int kFewRowsWidth = MR == 1 ? 8 : 4;

// MR rows by NV registers of columns; `count` lanes of the last one.
template <class C, int MR, int NV, class Count>
FASTACT_FN void few_rows_block(const RecurrentProduct& p, int64_t column, Count count) {
  using V = Vec<C>;
  constexpr int64_t kBlock = Gemm<C>::kBlock;
  const C* a = static_cast<const C*>(p.a);
  const C* b = static_cast<const C*>(p.b) + column;
  C* c = static_cast<C*>(p.c) + column;
  for (int64_t first = 0; first < p.k || first == 0; first += kBlock) {
    const int64_t last = p.k - first < kBlock ? p.k : first + kBlock;
    V sum[MR][NV];
    FASTACT_UNROLL for (int i = 0; i < MR; ++i) {
      FASTACT_UNROLL for (int j = 0; j < NV; ++j) sum[i][j] = V(0);
    }
    for (int64_t k = first; k < last; ++k) {
      V left[MR];
      FASTACT_UNROLL for (int i = 0; i < MR; ++i) left[i] = V(a[i * p.a_stride + k]);
      FASTACT_UNROLL for (int j = 0; j < NV; ++j) {
        const C* from = b + k * p.b_stride + j * V::size;
        const V right = j + 1 < NV ? V::load(from) : load_lanes<V>(from, count);
        FASTACT_UNROLL for (int i = 0; i < MR; ++i) sum[i][j] = fma(left[i], right, sum[i][j]);
      }
    }
    FASTACT_UNROLL for (int i = 0; i < MR; ++i) {
      FASTACT_UNROLL for (int j = 0; j < NV; ++j) {
        C* to = c + i * p.c_stride + j * V::size;
        if (j + 1 < NV) {
          (first ? V::load(to) + sum[i][j] : sum[i][j]).store(to);
        } else {
          store_lanes(first ? load_lanes<V>(to, count) + sum[i][j] : sum[i][j], to, count);
        }
      }
    }
  }
}

template <class C, int MR>
void few_rows_of(const RecurrentProduct& p) {
  using V = Vec<C>;
  constexpr int kWidth = kFewRowsWidth<MR>;
  int64_t column = 0;
  for (; column + kWidth * V::size <= p.columns; column += kWidth * V::size) {
    few_rows_block<C, MR, kWidth>(p, column, WholeVector<V>());
  }
  for (; column + 2 * V::size <= p.columns; column += 2 * V::size) {
    few_rows_block<C, MR, 2>(p, column, WholeVector<V>());
  }
  for (; column < p.columns; column += V::size) {
    const int64_t left = p.columns - column;
    few_rows_block<C, MR, 1>(p, column, left < V::size ? static_cast<int>(left) : V::size);
  }
}

template <class C>
void few_rows(const RecurrentProduct& p) {
  switch (p.rows) {
    case 1:
      return few_rows_of<C, 1>(p);
    case 2:
      return few_rows_of<C, 2>(p);
    default:
      return few_rows_of<C, kFewRecurrentRows>(p);
  }
}

// ---- cells
// ---------------------------------------------------------------------------------------

// The registers of a cache line side by side: a formula's chain waits for itself less.
template <class C>
using CellVector =
    std::conditional_t<sizeof(Vec<C>) == 64, Vec<C>, Pack<Vec<C>, 64 / sizeof(Vec<C>)>>;

// Where the elements of one row and unit lie.
template <class C>
struct RowOf {
  C* data;
  FASTACT_FN RowOf(const RecurrentRow& row, int64_t i)
      : data(static_cast<C*>(row.data) + (row.data ? i * row.stride : 0)) {}
  FASTACT_FN C* at(int64_t unit) const { return data + unit; }
};
template <class C>
struct ConstRowOf {
  const C* data;
  FASTACT_FN ConstRowOf(const ConstRecurrentRow& row, int64_t i)
      : data(static_cast<const C*>(row.data) + (row.data ? i * row.stride : 0)) {}
  template <class V, class Count>
  FASTACT_FN V load(int64_t unit, Count count) const {
    return load_lanes<V>(data + unit, count);
  }
};

template <class C, RecurrentCell cell>
void finish_cell(const RecurrentTile& t) {
  using V = CellVector<C>;
  for (int64_t row = 0; row < t.rows; ++row) {
    const ConstRowOf<C> sums(t.sums, row);
    const RowOf<C> gates(t.gates, row);
    const RowOf<C> out(t.out, row);
    for_each_vector<V>(t.units, [&](int64_t u, auto count) FASTACT_LAMBDA {
      const auto sum = [&](int gate) FASTACT_LAMBDA {
        return sums.template load<V>(u + gate * t.sums_gate, count);
      };
      const auto from_x = [&](int gate) FASTACT_LAMBDA {
        return load_lanes<V>(gates.at(u + gate * t.gates_gate), count);
      };
      const auto keep = [&](int gate, const V& value) FASTACT_LAMBDA {
        store_lanes(value, gates.at(u + gate * t.gates_gate), count);
      };
      if constexpr (cell == kProjectionCell) {
        store_lanes(sum(0), out.at(u), count);
      } else if constexpr (cell == kTanhCell) {
        store_lanes(tanh(from_x(0) + sum(0)), out.at(u), count);
      } else if constexpr (cell == kReluCell) {
        store_lanes(max(V(0), from_x(0) + sum(0)), out.at(u), count);
      } else if constexpr (cell == kGruCell) {
        const V bias = load_lanes<V>(static_cast<const C*>(t.hn_bias) + u, count);
        const V n_h = sum(2) + bias;
        const auto g =
            GruGates<V>::activated(from_x(0) + sum(0), from_x(1) + sum(1), from_x(2), n_h);
        store_lanes(g.hidden(ConstRowOf<C>(t.h, row).template load<V>(u, count)), out.at(u), count);
        if (t.save) {
          keep(0, g.r);
          keep(1, g.z);
          keep(2, g.n);
          store_lanes(n_h, RowOf<C>(t.hn, row).at(u), count);
        }
      } else {
        const auto g = LstmGates<V>::activated(from_x(0) + sum(0), from_x(1) + sum(1),
                                               from_x(2) + sum(2), from_x(3) + sum(3));
        const V c = g.cell(ConstRowOf<C>(t.c_before, row).template load<V>(u, count));
        store_lanes(c, RowOf<C>(t.c, row).at(u), count);
        store_lanes(g.hidden(c), out.at(u), count);
        if (t.save) {
          keep(0, g.i);
          keep(1, g.f);
          keep(2, g.g);
          keep(3, g.o);
        }
      }
    });
  }
}

template <class C, RecurrentCell cell>
void finish_cell_backward(const RecurrentBackwardTile& t) {
  using V = CellVector<C>;
  for (int64_t row = 0; row < t.rows; ++row) {
    const ConstRowOf<C> gates(t.gates, row);
    const RowOf<C> to(t.gradients, row);
    for_each_vector<V>(t.units, [&](int64_t u, auto count) FASTACT_LAMBDA {
      const auto gate = [&](int g) FASTACT_LAMBDA {
        return gates.template load<V>(u + g * t.gates_gate, count);
      };
      const auto load = [&](const ConstRecurrentRow& from) FASTACT_LAMBDA {
        return ConstRowOf<C>(from, row).template load<V>(u, count);
      };
      const auto put = [&](int g, const V& value) FASTACT_LAMBDA {
        store_lanes(value, to.at(u + g * t.gradients_gate), count);
      };
      V dh(0);
      if (t.sums.data) dh = load(t.sums);
      if (t.dy.data) dh = dh + load(t.dy);
      if (t.dh.data) dh = dh + load(t.dh);
      if constexpr (cell == kProjectionCell) {
        put(0, dh);
      } else if constexpr (cell == kTanhCell) {
        put(0, dh * tanh_slope(load(t.h)));
      } else if constexpr (cell == kReluCell) {
        put(0, select(load(t.h) <= V(0), V(0), dh));
      } else if constexpr (cell == kGruCell) {
        const GruGates<V> g{gate(0), gate(1), gate(2)};
        const auto d = g.backward(load(t.h_before), load(t.hn), &dh);
        put(0, d.r);
        put(1, d.z);
        put(2, d.n_h);
        put(3, d.n_x);
        store_lanes(dh, RowOf<C>(t.dh_before, row).at(u), count);
      } else {
        const LstmGates<V> g{gate(0), gate(1), gate(2), gate(3)};
        C* dc_at = RowOf<C>(t.dc, row).at(u);
        V dc = load_lanes<V>(dc_at, count);
        const auto d = g.backward(load(t.c_before), load(t.c), dh, &dc);
        put(0, d.i);
        put(1, d.f);
        put(2, d.g);
        put(3, d.o);
        store_lanes(dc, dc_at, count);
      }
    });
  }
}

template <class C>
constexpr RecurrentKernels kRecurrentKernels = {
    {kPanelUnits<C>[0], kPanelUnits<C>[1], kPanelUnits<C>[2], kPanelUnits<C>[3], kPanelUnits<C>[4]},
    &pack_gates<C>,
    &few_rows<C>,
    {&finish_cell<C, kTanhCell>, &finish_cell<C, kReluCell>, &finish_cell<C, kGruCell>,
     &finish_cell<C, kLstmCell>, &finish_cell<C, kProjectionCell>},
    {&finish_cell_backward<C, kTanhCell>, &finish_cell_backward<C, kReluCell>,
     &finish_cell_backward<C, kGruCell>, &finish_cell_backward<C, kLstmCell>,
     &finish_cell_backward<C, kProjectionCell>},
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
