#include <cstring>

#include "cpu/gemm/gemm.h"
#include "cpu/recurrent/steps.h"

namespace fastact {
namespace {

// Bytes of the inputs' part that is formed at a time: they are in the L3 when the steps read them.
constexpr int64_t kChunkBytes = 2 << 20;
// Units of a batch of 1 at a time.
constexpr int64_t kUnitsInPlace = 256;
// Elements of a copy, or of a cell without its product, that a thread is woken for.
constexpr int64_t kElementGrain = 1 << 14;

// One layer in one direction. `y` is its first column in an output of stride `y_stride`; gates, hn
// or c, and m (h before the projection) have all rows where they are kept for backward.
struct Direction {
  const RecurrentProblem& p;
  const RecurrentWeights& w;
  bool reverse;
  const char* x;
  int64_t inputs;
  const char* hx;
  const char* cx;
  char* y;
  int64_t y_stride;
  char* hy;
  char* cy;
  char* gates;
  char* hn;
  char* c;
  char* m;

  StepOrder order{p, reverse};
  int64_t size = size_of(p.dtype);
  int64_t gate_columns = p.gates() * p.hidden;
  int64_t gate_stride = recurrent_gate_stride(p.cell, p.hidden, size);
  bool keeps = gates || hn;
  bool projects = w.w_hr;
  const RecurrentKernels& kernel = kernels().recurrent[p.dtype];
  int64_t first_row_of_gates = 0;  // where `gates` holds a chunk only
  const char* hn_bias = nullptr;
  const char* packed = nullptr;     // W_hh
  const char* packed_hr = nullptr;  // the projection

  const char* state_before(int64_t t, bool has_before, int64_t row, int64_t* stride) const {
    *stride = has_before ? y_stride : p.state;
    return has_before ? y + (p.offsets[order.before(t)] + row) * y_stride * size
                      : hx + row * p.state * size;
  }

  // Rows [row, row + rows) of step t and units [unit, unit + units), but for their sums.
  RecurrentTile tile_of(int64_t t, int64_t row, int64_t rows, int64_t unit, int64_t units,
                        bool has_before) const {
    const int64_t at = p.offsets[t] + row;
    const auto element = [&](char* data, int64_t r, int64_t stride) {
      return data + (r * stride + unit) * size;
    };
    RecurrentTile tile{};
    tile.rows = rows;
    tile.units = units;
    tile.gates_gate = p.hidden;
    tile.save = keeps;
    tile.gates = {element(gates, at - first_row_of_gates, gate_stride), gate_stride};
    if (p.cell == kGruCell) {
      tile.hn_bias = hn_bias + unit * size;
      tile.h.data = state_before(t, has_before, row, &tile.h.stride) + unit * size;
      if (keeps) {
        tile.hn = {element(hn, at, p.hidden), p.hidden};
      }
    } else if (p.cell == kLstmCell) {
      if (keeps) {
        tile.c = {element(c, at, p.hidden), p.hidden};
        tile.c_before = {has_before ? element(c, p.offsets[order.before(t)] + row, p.hidden)
                                    : cx + (row * p.hidden + unit) * size,
                         p.hidden};
      } else {
        tile.c = {element(cy, row, p.hidden), p.hidden};
        tile.c_before = {tile.c.data, p.hidden};
      }
    }
    if (projects) {
      tile.out = {element(m, keeps ? at : row, p.hidden), p.hidden};
    } else {
      tile.out = {element(y, at, y_stride), y_stride};
    }
    return tile;
  }

  // The cell on tiles of a product of rows of `a` with packed weights; tile_at(row, rows, first
  // unit, units) is a tile but for its sums.
  template <class F>
  void by_panels(RecurrentCell cell, const char* weights, int64_t k, const void* a,
                 int64_t a_stride, int64_t rows, int64_t unit, int64_t unit_end,
                 const F& tile_at) const {
    alignas(64) char sums[kStepTileRows * kStepTileRowBytes];
    const int64_t units = kernel.panel_units[cell];
    const int64_t width = kRecurrentGates[cell] * units;
    const int64_t strip = std::min(kernel.strip, width);
    for (; unit < unit_end; unit += units) {
      const char* panel = weights + unit / units * k * width * size;
      for (int64_t row = 0; row < rows; row += kStepTileRows) {
        const int64_t tile_rows = std::min(kStepTileRows, rows - row);
        RecurrentTile tile = tile_at(row, tile_rows, unit, std::min(units, unit_end - unit));
        kernel.multiply({static_cast<const char*>(a) + row * a_stride * size, a_stride, panel,
                         strip, strip * k, k, tile_rows, width, sums, width});
        tile.sums = {sums, width};
        tile.sums_gate = units;
        kernel.cell[cell](tile);
      }
    }
  }

  // The same for one row and weights as they lie, [gates * all_units][k].
  template <class F>
  void in_place(RecurrentCell cell, const void* weights, int64_t all_units, int64_t k,
                const void* a, int64_t unit, int64_t unit_end, const F& tile_at) const {
    alignas(64) char sums[4 * kUnitsInPlace * sizeof(double)];
    for (; unit < unit_end; unit += kUnitsInPlace) {
      const int64_t units = std::min(kUnitsInPlace, unit_end - unit);
      for (int64_t gate = 0; gate < kRecurrentGates[cell]; ++gate) {
        kernels().gemm[p.dtype].rows(
            {a, 0, static_cast<const char*>(weights) + (gate * all_units + unit) * k * size, k, k,
             /*rows=*/1, units, /*bias=*/nullptr, sums + gate * units * size, 0});
      }
      RecurrentTile tile = tile_at(0, 1, unit, units);
      tile.sums = {sums, 0};
      tile.sums_gate = units;
      kernel.cell[cell](tile);
    }
  }

  void step(int64_t t, const StepShare& share) const {
    order.alike(t, share.row, std::min(share.row_end, p.rows[t]),
                [&](int64_t row, int64_t end, bool has_before, bool) {
                  int64_t stride;
                  const char* h = state_before(t, has_before, row, &stride);
                  const auto tile_at = [&](int64_t r, int64_t rows, int64_t unit, int64_t units) {
                    return tile_of(t, row + r, rows, unit, units, has_before);
                  };
                  if (packed) {
                    by_panels(p.cell, packed, p.state, h, stride, end - row, share.unit,
                              share.unit_end, tile_at);
                  } else {
                    in_place(p.cell, w.w_hh, p.hidden, p.state, h, share.unit, share.unit_end,
                             tile_at);
                  }
                });
  }

  void project(int64_t t, const StepShare& share) const {
    const int64_t at = p.offsets[t];
    const int64_t end = std::min(share.row_end, p.rows[t]);
    if (share.row >= end) {
      return;
    }
    const char* from = m + ((keeps ? at : 0) + share.row) * p.hidden * size;
    const auto tile_at = [&](int64_t r, int64_t rows, int64_t unit, int64_t units) {
      RecurrentTile tile{};
      tile.rows = rows;
      tile.units = units;
      tile.out = {y + ((at + share.row + r) * y_stride + unit) * size, y_stride};
      return tile;
    };
    if (packed_hr) {
      by_panels(kProjectionCell, packed_hr, p.hidden, from, p.hidden, end - share.row, share.unit,
                share.unit_end, tile_at);
    } else {
      in_place(kProjectionCell, w.w_hr, p.state, p.hidden, from, share.unit, share.unit_end,
               tile_at);
    }
  }

  // Steps [i, end) in the order of this direction.
  void steps(int64_t i, int64_t end) const {
    const StepPlan plan = StepPlan::choose(p);
    run_team(plan.threads, [&](Team& team, int64_t member) {
      const StepShare share =
          plan.share(team, member, p.batch, p.hidden, kernel.panel_units[p.cell]);
      const StepShare projection =
          plan.share(team, member, p.batch, p.state, kernel.panel_units[kProjectionCell]);
      const auto wait = [&] {
        if (!plan.by_rows) {
          team.wait();
        }
      };
      for (int64_t j = i; j < end; ++j) {
        step(order.step(j), share);
        wait();
        if (projects) {
          project(order.step(j), projection);
          wait();
        }
      }
    });
  }

  // The only step: weights are read once, so that nothing is packed for it.
  void single_step() const {
    Workspace<> sums(p.batch * gate_columns * size);
    gemm({p.dtype,
          p.batch,
          gate_columns,
          p.state,
          {hx, p.state, 1},
          {w.w_hh, 1, p.state},
          nullptr,
          sums.get(),
          gate_columns,
          {}});
    parallel_for(p.rows[0], std::max<int64_t>(kElementGrain / gate_columns, 1),
                 [&](int64_t row, int64_t end) {
                   RecurrentTile tile =
                       tile_of(0, row, end - row, 0, p.hidden, /*has_before=*/false);
                   tile.sums = {sums.get() + row * gate_columns * size, gate_columns};
                   tile.sums_gate = p.hidden;
                   kernel.cell[p.cell](tile);
                 });
    if (projects) {
      gemm({p.dtype,
            p.rows[0],
            p.state,
            p.hidden,
            {m, p.hidden, 1},
            {w.w_hr, 1, p.hidden},
            nullptr,
            y,
            y_stride,
            {}});
    }
  }

  // b_ih + b_hh of all gates, but b_ih of a GRU's n; and b_hh of that.
  template <class C>
  void add_biases(char* sums, char* of_hn) const {
    const int64_t apart = p.cell == kGruCell ? 2 * p.hidden : gate_columns;
    C* to = reinterpret_cast<C*>(sums);
    for (int64_t i = 0; i < gate_columns; ++i) {
      const C b_ih = w.b_ih ? static_cast<const C*>(w.b_ih)[i] : C(0);
      const C b_hh = w.b_hh ? static_cast<const C*>(w.b_hh)[i] : C(0);
      to[i] = i < apart ? b_ih + b_hh : b_ih;
      if (i >= apart) {
        reinterpret_cast<C*>(of_hn)[i - apart] = b_hh;
      }
    }
  }

  void pack(RecurrentCell cell, const void* weights, int64_t units, int64_t k, char* to) const {
    const int64_t panels = (units + kernel.panel_units[cell] - 1) / kernel.panel_units[cell];
    const int64_t elements = kRecurrentGates[cell] * kernel.panel_units[cell] * k;
    parallel_for(panels, std::max<int64_t>(4 * kElementGrain / elements, 1),
                 [&](int64_t begin, int64_t end) {
                   kernel.pack_gates(cell, weights, units, k, begin, end, to);
                 });
  }
  int64_t packed_bytes(RecurrentCell cell, int64_t units, int64_t k) const {
    const int64_t panel = kernel.panel_units[cell];
    return (units + panel - 1) / panel * panel * kRecurrentGates[cell] * k * size;
  }

  void run() {
    SmallWorkspace biases((gate_columns + p.hidden) * size);
    char* hidden_bias = biases.get() + gate_columns * size;
    p.dtype == kFloat64 ? add_biases<double>(biases.get(), hidden_bias)
                        : add_biases<float>(biases.get(), hidden_bias);
    hn_bias = hidden_bias;
    if (p.cell == kLstmCell && !keeps) {
      std::memcpy(cy, cx, p.batch * p.hidden * size);
    }
    const bool packs = p.steps > 1 && p.batch > 1;
    SmallWorkspace panels(packs ? packed_bytes(p.cell, p.hidden, p.state) : 0);
    SmallWorkspace panels_hr(packs && projects ? packed_bytes(kProjectionCell, p.state, p.hidden)
                                               : 0);
    if (packs) {
      pack(p.cell, w.w_hh, p.hidden, p.state, panels.get());
      packed = panels.get();
      if (projects) {
        pack(kProjectionCell, w.w_hr, p.state, p.hidden, panels_hr.get());
        packed_hr = panels_hr.get();
      }
    }
    SmallWorkspace unprojected(projects && !m ? p.batch * p.hidden * size : 0);
    if (projects && !m) {
      m = unprojected.get();
    }
    // Whole steps, as many as fit.
    const int64_t rows_together =
        std::max(kChunkBytes / std::max<int64_t>(gate_stride * size, 1), p.batch);
    SmallWorkspace chunk(gates ? 0 : std::min(rows_together, p.all_rows()) * gate_stride * size);
    // A product of few rows would form other sums than one of many: of one sequence or step they
    // may differ.
    const bool packs_ih = p.all_rows() > rows_together || (packs && p.all_rows() <= kMaxGemmRows);
    Workspace<> packed_ih(packs_ih ? gemm_packed_bytes(p.dtype, inputs, gate_columns) : 0);
    const GemmOperand w_ih{w.w_ih, 1, inputs};
    if (packs_ih) {
      gemm_pack(p.dtype, inputs, gate_columns, w_ih, packed_ih.get());
    }
    char* const all_gates = gates;
    for (int64_t begin = 0; begin < p.steps;) {
      int64_t end = begin;
      int64_t rows = 0;
      while (end < p.steps && rows + p.rows[order.step(end)] <= rows_together) {
        rows += p.rows[order.step(end++)];
      }
      const int64_t row = p.offsets[order.step(reverse ? end - 1 : begin)];
      if (!all_gates) {
        gates = chunk.get();
        first_row_of_gates = row;
      }
      GemmEpilogue epilogue;
      epilogue.bias = w.b_ih || w.b_hh ? biases.get() : nullptr;
      gemm({p.dtype,
            rows,
            gate_columns,
            inputs,
            {x + row * inputs * size, inputs, 1},
            w_ih,
            packs_ih ? packed_ih.get() : nullptr,
            gates + (row - first_row_of_gates) * gate_stride * size,
            gate_stride,
            epilogue});
      p.steps == 1 ? single_step() : steps(begin, end);
      begin = end;
    }
    order.last_states([&](int64_t row, int64_t at) {
      std::memcpy(hy + row * p.state * size,
                  at < 0 ? hx + row * p.state * size : y + at * y_stride * size, p.state * size);
      if (p.cell == kLstmCell && keeps) {
        std::memcpy(cy + row * p.hidden * size,
                    (at < 0 ? cx + row * p.hidden * size : c + at * p.hidden * size),
                    p.hidden * size);
      }
    });
  }
};

}  // namespace

void recurrent_forward(const RecurrentProblem& p, void* y, void* hy, void* cy, void* reserve) {
  const int64_t size = size_of(p.dtype);
  const int64_t rows = p.all_rows();
  const int64_t output_bytes = rows * p.width() * size;
  const ReserveLayout layout(p);
  const auto kept = [&](int64_t at) {
    return reserve ? static_cast<char*>(reserve) + at * size : nullptr;
  };
  const bool gated = p.cell == kGruCell || p.cell == kLstmCell;
  const bool projects = p.weights[0].w_hr;
  Workspace<> between(!reserve && p.layers > 1 ? output_bytes : 0);
  Workspace<> more(!reserve && p.layers > 2 ? output_bytes : 0);
  Workspace<> dropped(p.noise ? output_bytes : 0);
  const char* x = static_cast<const char*>(p.x);
  for (int64_t layer = 0; layer < p.layers; ++layer) {
    const bool is_last = layer + 1 == p.layers;
    char* output = reserve     ? kept(layout.output(layer))
                   : is_last   ? static_cast<char*>(y)
                   : layer % 2 ? more.get()
                               : between.get();
    if (layer && p.noise) {
      multiply_elements(p.dtype, x, static_cast<const char*>(p.noise) + (layer - 1) * output_bytes,
                        dropped.get(), rows * p.width());
      x = dropped.get();
    }
    for (int64_t i = 0; i < p.directions; ++i) {
      const int64_t at = layer * p.directions + i;
      const auto first = [&](const void* states, int64_t elements) {
        return states ? static_cast<const char*>(states) + at * p.batch * elements * size : nullptr;
      };
      const auto last = [&](void* states, int64_t elements) {
        return states ? static_cast<char*>(states) + at * p.batch * elements * size : nullptr;
      };
      const bool keeps = reserve && gated;
      Direction{p,
                p.weights[at],
                /*reverse=*/i == 1,
                x,
                p.input_of(layer),
                first(p.hx, p.state),
                first(p.cx, p.hidden),
                output + i * p.state * size,
                p.width(),
                last(hy, p.state),
                last(cy, p.hidden),
                keeps ? kept(layout.gates(layer, i)) : nullptr,
                keeps && p.cell == kGruCell ? kept(layout.cells(layer, i)) : nullptr,
                keeps && p.cell == kLstmCell ? kept(layout.cells(layer, i)) : nullptr,
                keeps && projects ? kept(layout.unprojected(layer, i)) : nullptr}
          .run();
    }
    x = output;
  }
  if (reserve) {
    copy_bytes(x, y, output_bytes);
  }
}

}  // namespace fastact
