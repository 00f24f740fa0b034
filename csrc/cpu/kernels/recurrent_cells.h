// Recurrent layers: the cells on the tile of a product.
#pragma once

#include <type_traits>

#include "cpu/kernels/loops.h"
#include "cpu/kernels/recurrent_table.h"
#include "math/recurrent.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// A cache line of units of several rows side by side: a formula's chain of fused multiply-adds
// waits for itself, and the processor does not look far enough ahead for the next row.
template <class C, int kRows>
struct CellRows {
  static constexpr int kLine = 64 / sizeof(Vec<C>);  // registers
  using Line = Pack<Vec<C>, kLine>;
  using V = Pack<Vec<C>, kRows * kLine>;
  static constexpr int kUnits = Line::size;

  template <class Count>
  static FASTACT_FN V load(ConstRecurrentRow from, int64_t row, int64_t unit, Count count) {
    V v;
    FASTACT_UNROLL for (int i = 0; i < kRows; ++i) {
      const C* first = static_cast<const C*>(from.data) + (row + i) * from.stride + unit;
      const Line line = load_lanes<Line>(first, count);
      FASTACT_UNROLL for (int j = 0; j < kLine; ++j) v.part[i * kLine + j] = line.part[j];
    }
    return v;
  }
  template <class Count>
  static FASTACT_FN void store(const V& v, RecurrentRow to, int64_t row, int64_t unit,
                               Count count) {
    FASTACT_UNROLL for (int i = 0; i < kRows; ++i) {
      Line line;
      FASTACT_UNROLL for (int j = 0; j < kLine; ++j) line.part[j] = v.part[i * kLine + j];
      store_lanes(line, static_cast<C*>(to.data) + (row + i) * to.stride + unit, count);
    }
  }
};
// As many rows as make four registers.
template <class C>
constexpr int kRowsTogether = sizeof(Vec<C>) < 32 ? 1 : sizeof(Vec<C>) / 16;

// f(rows as a constant, first row, first unit, how many units) over a tile.
template <class C, class F>
FASTACT_FN void for_each_line(int64_t rows, int64_t units, const F& f) {
  using One = std::integral_constant<int, 1>;
  using Line = typename CellRows<C, 1>::Line;
  for (int64_t u = 0; u < units; u += Line::size) {
    int64_t row = 0;
    if (units - u < Line::size) {
      for (; row < rows; ++row) f(One(), row, u, static_cast<int>(units - u));
    } else {
      constexpr int kRows = kRowsTogether<C>;
      for (; row + kRows <= rows; row += kRows) {
        f(std::integral_constant<int, kRows>(), row, u, WholeVector<Line>());
      }
      for (; row < rows; ++row) f(One(), row, u, WholeVector<Line>());
    }
  }
}

template <class C, RecurrentCell cell>
void finish_cell(const RecurrentTile& t) {
  for_each_line<C>(
      t.rows, t.units, [&](auto rows, int64_t row, int64_t u, auto count) FASTACT_LAMBDA {
        using R = CellRows<C, decltype(rows)::value>;
        using V = typename R::V;
        const ConstRecurrentRow gates{t.gates.data, t.gates.stride};
        const auto sum = [&](int gate) FASTACT_LAMBDA {
          return R::load(t.sums, row, u + gate * t.sums_gate, count);
        };
        const auto from_x = [&](int gate) FASTACT_LAMBDA {
          return R::load(gates, row, u + gate * t.gates_gate, count);
        };
        const auto keep = [&](int gate, const V& value) FASTACT_LAMBDA {
          R::store(value, t.gates, row, u + gate * t.gates_gate, count);
        };
        if constexpr (cell == kProjectionCell) {
          R::store(sum(0), t.out, row, u, count);
        } else if constexpr (cell == kTanhCell) {
          R::store(gate_tanh(from_x(0) + sum(0)), t.out, row, u, count);
        } else if constexpr (cell == kReluCell) {
          R::store(max(V(0), from_x(0) + sum(0)), t.out, row, u, count);
        } else if constexpr (cell == kGruCell) {
          const V n_h = sum(2) + R::load({t.hn_bias, 0}, row, u, count);
          const auto g =
              GruGates<V>::activated(from_x(0) + sum(0), from_x(1) + sum(1), from_x(2), n_h);
          R::store(g.hidden(R::load(t.h, row, u, count)), t.out, row, u, count);
          if (t.save) {
            keep(0, g.r);
            keep(1, g.z);
            keep(2, g.n);
            R::store(n_h, t.hn, row, u, count);
          }
        } else {
          const auto g = LstmGates<V>::activated(from_x(0) + sum(0), from_x(1) + sum(1),
                                                 from_x(2) + sum(2), from_x(3) + sum(3));
          const V c = g.cell(R::load(t.c_before, row, u, count));
          R::store(c, t.c, row, u, count);
          R::store(g.hidden(c), t.out, row, u, count);
          if (t.save) {
            keep(0, g.i);
            keep(1, g.f);
            keep(2, g.g);
            keep(3, g.o);
          }
        }
      });
}

template <class C, RecurrentCell cell>
void finish_cell_backward(const RecurrentBackwardTile& t) {
  for_each_line<C>(t.rows, t.units,
                   [&](auto rows, int64_t row, int64_t u, auto count) FASTACT_LAMBDA {
                     using R = CellRows<C, decltype(rows)::value>;
                     using V = typename R::V;
                     const auto load = [&](ConstRecurrentRow from)
                                           FASTACT_LAMBDA { return R::load(from, row, u, count); };
                     const auto gate = [&](int g) FASTACT_LAMBDA {
                       return R::load(t.gates, row, u + g * t.gates_gate, count);
                     };
                     const auto put = [&](int g, const V& value) FASTACT_LAMBDA {
                       R::store(value, t.gradients, row, u + g * t.gradients_gate, count);
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
                       R::store(dh, t.dh_before, row, u, count);
                     } else {
                       const LstmGates<V> g{gate(0), gate(1), gate(2), gate(3)};
                       V dc = load({t.dc.data, t.dc.stride});
                       const auto d = g.backward(load(t.c_before), load(t.c), dh, &dc);
                       put(0, d.i);
                       put(1, d.f);
                       put(2, d.g);
                       put(3, d.o);
                       R::store(dc, t.dc, row, u, count);
                     }
                   });
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
