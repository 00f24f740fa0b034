#include <cstring>

#include "cpu/gemm/gemm.h"
#include "cpu/recurrent/steps.h"

namespace fastact {
namespace {

// Fewer rows read W_hh as it lies as fast: packing it would be as long as some steps.
constexpr int64_t kRowsToPackFor = 4;

// One layer in one direction. dh and dc are [B, P] and [B, H]: the gradients of its last states,
// and then of its first ones. dy and y are its first columns in outputs of stride `y_stride`.
struct BackwardDirection {
  const RecurrentProblem& p;
  const RecurrentWeights& w;
  const RecurrentWeightGradients& dw;
  bool reverse;
  const char* x;
  int64_t inputs;
  const char* hx;
  const char* cx;
  const char* y;
  int64_t y_stride;
  const char* gates;
  const char* hn;
  const char* c;
  const char* m;
  const char* dy;  // or null
  char* dh;
  char* dc;
  char* dx;         // or null
  bool adds_to_dx;  // the other direction's is there
  bool wants_dh;

  StepOrder order{p, reverse};
  int64_t size = size_of(p.dtype);
  int64_t gate_columns = p.gates() * p.hidden;
  int64_t slopes = kRecurrentGradients[p.cell] * p.hidden;
  int64_t slopes_stride = spread_row_bytes(slopes * size) / size;
  bool projects = w.w_hr;
  const RecurrentKernels& kernel = kernels().recurrent[p.dtype];
  char* gradients = nullptr;  // [N, slopes], rows `slopes_stride` apart: of the sums
  char* outer = nullptr;      // [N, P]: of h, where it is projected
  const char* packed_hh = nullptr;
  const char* packed_hr = nullptr;

  int64_t row_of(int64_t t, int64_t row) const { return p.offsets[t] + row; }

  // Rows [row, row + rows) of step t and units [unit, unit + units), but for their sums: what gets
  // the gradients of the gates' sums by those of later steps or of the projection, of the output,
  // and of the last state.
  RecurrentBackwardTile tile_of(int64_t t, int64_t row, int64_t rows, int64_t unit, int64_t units,
                                bool has_before, bool has_dy, bool has_dh) const {
    const int64_t at = row_of(t, row);
    const auto in = [&](const char* data, int64_t r, int64_t stride) {
      return ConstRecurrentRow{data + (r * stride + unit) * size, stride};
    };
    const auto out = [&](char* data, int64_t r, int64_t stride) {
      return RecurrentRow{data + (r * stride + unit) * size, stride};
    };
    RecurrentBackwardTile tile{};
    tile.rows = rows;
    tile.units = units;
    if (has_dy && dy) {
      tile.dy = in(dy, at, y_stride);
    }
    if (has_dh) {
      tile.dh = in(dh, row, p.state);
    }
    tile.gates = in(gates, at, recurrent_gate_stride(p.cell, p.hidden, size));
    tile.gates_gate = p.hidden;
    tile.gradients = out(gradients, at, slopes_stride);
    tile.gradients_gate = p.hidden;
    tile.h = in(y, at, y_stride);
    if (p.cell == kGruCell) {
      tile.hn = in(hn, at, p.hidden);
      tile.h_before =
          has_before ? in(y, row_of(order.before(t), row), y_stride) : in(hx, row, p.state);
      tile.dh_before = out(dh, row, p.state);
    } else if (p.cell == kLstmCell) {
      tile.c = in(c, at, p.hidden);
      tile.c_before =
          has_before ? in(c, row_of(order.before(t), row), p.hidden) : in(cx, row, p.hidden);
      tile.dc = out(dc, row, p.hidden);
    }
    return tile;
  }

  // Where h is projected: what gets its gradient of step t.
  RecurrentBackwardTile outer_tile_of(int64_t t, int64_t row, int64_t rows, int64_t unit,
                                      int64_t units, bool has_dh) const {
    const int64_t at = row_of(t, row);
    RecurrentBackwardTile tile{};
    tile.rows = rows;
    tile.units = units;
    if (dy) {
      tile.dy = {dy + (at * y_stride + unit) * size, y_stride};
    }
    if (has_dh) {
      tile.dh = {dh + (row * p.state + unit) * size, p.state};
    }
    tile.gradients = {outer + (at * p.state + unit) * size, p.state};
    return tile;
  }

  // The cell backward on tiles of a product of `rows` rows of a, k long, with `n` columns of b, in
  // strips or, null, as it lies. `unit` begins a strip; tile_at(row, rows, unit, units) is a tile
  // but for its sums.
  template <class F>
  void by_tiles(RecurrentCell cell, const char* a, int64_t a_stride, int64_t k, int64_t n,
                const void* b, const char* packed, int64_t rows, int64_t unit, int64_t unit_end,
                const F& tile_at) const {
    alignas(64) char sums[kStepTileRows * kStepTileRowBytes];
    const int64_t width = kStepTileRowBytes / size;  // a multiple of all strips
    for (; unit < unit_end; unit += width) {
      const int64_t units = std::min(width, unit_end - unit);
      const char* from =
          packed ? packed + unit * k * size : static_cast<const char*>(b) + unit * size;
      for (int64_t row = 0; row < rows; row += kStepTileRows) {
        const int64_t tile_rows = std::min(kStepTileRows, rows - row);
        RecurrentBackwardTile tile = tile_at(row, tile_rows, unit, units);
        kernel.multiply({a + row * a_stride * size, a_stride, from, packed ? kernel.strip : n,
                         packed ? kernel.strip * k : kernel.strip, k, tile_rows, units, sums,
                         width});
        tile.sums = {sums, width};
        kernel.cell_backward[cell](tile);
      }
    }
  }

  // The cell backward on tiles of what rows [row, end) of a step get from the one after it.
  template <class F>
  void from_after(RecurrentCell cell, int64_t after, int64_t row, int64_t end,
                  const StepShare& share, const F& tile_at) const {
    by_tiles(cell, gradients + row_of(after, row) * slopes_stride * size, slopes_stride,
             gate_columns, p.state, w.w_hh, packed_hh, end - row, share.unit, share.unit_end,
             tile_at);
  }

  // Step t, or where h is projected its gradient alone.
  void step(int64_t t, const StepShare& share) const {
    const auto rows_alike = [&](int64_t row, int64_t end, bool has_before, bool has_after) {
      const RecurrentCell cell = projects ? kProjectionCell : p.cell;
      const bool has_dh = !has_after || p.cell == kGruCell;
      const auto tile_at = [&](int64_t r, int64_t rows, int64_t unit, int64_t units) {
        return projects
                   ? outer_tile_of(t, row + r, rows, unit, units, has_dh)
                   : tile_of(t, row + r, rows, unit, units, has_before, /*has_dy=*/true, has_dh);
      };
      if (has_after) {
        from_after(cell, order.after(t), row, end, share, tile_at);
      } else {
        kernel.cell_backward[cell](tile_at(0, end - row, share.unit, share.unit_end - share.unit));
      }
    };
    order.alike(t, share.row, std::min(share.row_end, p.rows[t]), rows_alike);
  }

  // Step t behind the projection.
  void step_projected(int64_t t, const StepShare& share) const {
    order.alike(t, share.row, std::min(share.row_end, p.rows[t]),
                [&](int64_t row, int64_t end, bool has_before, bool) {
                  by_tiles(p.cell, outer + row_of(t, row) * p.state * size, p.state, p.state,
                           p.hidden, w.w_hr, packed_hr, end - row, share.unit, share.unit_end,
                           [&](int64_t r, int64_t rows, int64_t unit, int64_t units) {
                             return tile_of(t, row + r, rows, unit, units, has_before,
                                            /*has_dy=*/false, /*has_dh=*/false);
                           });
                });
  }

  // dh of the first states, of the rows that begin at step t.
  void first_state(int64_t t, const StepShare& share) const {
    order.alike(t, share.row, std::min(share.row_end, p.rows[t]),
                [&](int64_t row, int64_t end, bool has_before, bool) {
                  if (has_before) {
                    return;
                  }
                  from_after(kProjectionCell, t, row, end, share,
                             [&](int64_t r, int64_t rows, int64_t unit, int64_t units) {
                               RecurrentBackwardTile tile{};
                               tile.rows = rows;
                               tile.units = units;
                               tile.gradients = {dh + ((row + r) * p.state + unit) * size, p.state};
                               if (p.cell == kGruCell) {
                                 tile.dh = {tile.gradients.data, p.state};
                               }
                               return tile;
                             });
                });
  }

  void steps() const {
    const StepPlan plan = StepPlan::choose(p);
    const int64_t grain = kernel.strip;
    run_team(plan.threads, [&](Team& team, int64_t member) {
      const StepShare share = plan.share(team, member, p.batch, p.state, grain);
      const StepShare hidden = plan.share(team, member, p.batch, p.hidden, grain);
      const auto wait = [&] {
        if (!plan.by_rows) {
          team.wait();
        }
      };
      for (int64_t i = p.steps; i-- > 0;) {
        step(order.step(i), share);
        wait();
        if (projects) {
          step_projected(order.step(i), hidden);
          wait();
        }
      }
      if (wants_dh) {
        for (int64_t t = 0; t < (reverse ? p.steps : 1); ++t) {
          first_state(t, share);
        }
      }
    });
  }

  // b, [k][n], in strips.
  void pack(const void* b, int64_t k, int64_t n, char* to) const {
    parallel_for(strips(n), 1,
                 [&](int64_t begin, int64_t end) { kernel.pack_strips(b, k, n, begin, end, to); });
  }
  int64_t strips(int64_t n) const { return (n + kernel.strip - 1) / kernel.strip; }
  int64_t packed_bytes(int64_t k, int64_t n) const { return strips(n) * kernel.strip * k * size; }

  // The states before all steps.
  void gather_before(char* to) const {
    parallel_for(p.steps, 8, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        order.alike(t, 0, p.rows[t], [&](int64_t row, int64_t end, bool has_before, bool) {
          for (; row < end; ++row) {
            const char* from = has_before ? y + row_of(order.before(t), row) * y_stride * size
                                          : hx + row * p.state * size;
            std::memcpy(to + row_of(t, row) * p.state * size, from, p.state * size);
          }
        });
      }
    });
  }

  // to[m][n] = a' b over all rows, a's rows `a_stride` elements apart.
  void sum_products(const void* a, int64_t a_stride, int64_t m, const void* b, int64_t n,
                    void* to) const {
    gemm({p.dtype, m, n, p.all_rows(), {a, 1, a_stride}, {b, n, 1}, nullptr, to, n, {}});
  }

  void weight_gradients() const {
    const int64_t rows = p.all_rows();
    const bool is_gru = p.cell == kGruCell;
    const char* of_n = gradients + gate_columns * size;  // GRU: of n's part from x
    if (dw.w_hh) {
      Workspace<> before(rows * p.state * size);
      gather_before(before.get());
      sum_products(gradients, slopes_stride, gate_columns, before.get(), p.state, dw.w_hh);
    }
    if (dw.w_hr) {
      sum_products(outer, p.state, p.state, m, p.hidden, dw.w_hr);
    }
    if (dw.w_ih) {
      const int64_t shared = is_gru ? 2 * p.hidden : gate_columns;
      char* to = static_cast<char*>(dw.w_ih);
      sum_products(gradients, slopes_stride, shared, x, inputs, to);
      if (is_gru) {
        sum_products(of_n, slopes_stride, p.hidden, x, inputs, to + shared * inputs * size);
      }
    }
    if (dw.b_ih || dw.b_hh) {
      SmallWorkspace sums(slopes_stride * size);  // what lies between rows is summed, too
      gemm_column_sums(p.dtype, gradients, rows, slopes_stride, sums.get());
      const int64_t bytes = gate_columns * size;
      if (dw.b_hh) {
        std::memcpy(dw.b_hh, sums.get(), bytes);
      }
      if (dw.b_ih) {
        std::memcpy(dw.b_ih, sums.get(), bytes);
        if (is_gru) {
          const int64_t own = p.hidden * size;
          std::memcpy(static_cast<char*>(dw.b_ih) + 2 * own, sums.get() + bytes, own);
        }
      }
    }
  }

  void input_gradient() const {
    const int64_t shared = p.cell == kGruCell ? 2 * p.hidden : gate_columns;
    const auto add = [&](const char* a, int64_t k, int64_t row_of_w, bool accumulate) {
      const AddResidual before{p.dtype, dx};
      GemmEpilogue epilogue;
      if (accumulate) {
        epilogue.stages.add(before);
      }
      const char* b = static_cast<const char*>(w.w_ih) + row_of_w * inputs * size;
      gemm({p.dtype,
            p.all_rows(),
            inputs,
            k,
            {a, slopes_stride, 1},
            {b, inputs, 1},
            nullptr,
            dx,
            inputs,
            epilogue});
    };
    add(gradients, shared, 0, adds_to_dx);
    if (p.cell == kGruCell) {
      add(gradients + gate_columns * size, p.hidden, shared, /*accumulate=*/true);
    }
  }

  void run() {
    SmallWorkspace all(p.all_rows() * slopes_stride * size);
    SmallWorkspace of_state(projects ? p.all_rows() * p.state * size : 0);
    gradients = all.get();
    outer = of_state.get();
    const bool packs = p.batch >= kRowsToPackFor;
    SmallWorkspace panels(packs ? packed_bytes(gate_columns, p.state) : 0);
    SmallWorkspace panels_hr(packs && projects ? packed_bytes(p.state, p.hidden) : 0);
    if (packs) {
      pack(w.w_hh, gate_columns, p.state, panels.get());
      packed_hh = panels.get();
      if (projects) {
        pack(w.w_hr, p.state, p.hidden, panels_hr.get());
        packed_hr = panels_hr.get();
      }
    }
    steps();
    weight_gradients();
    if (dx) {
      input_gradient();
    }
  }
};

bool any(const RecurrentWeightGradients& dw) {
  return dw.w_ih || dw.w_hh || dw.b_ih || dw.b_hh || dw.w_hr;
}

}  // namespace

void recurrent_backward(const RecurrentProblem& p, const void* reserve_, const void* dy_,
                        const void* dhy, const void* dcy, const RecurrentGradientsWanted& wanted) {
  const int64_t size = size_of(p.dtype);
  const int64_t rows = p.all_rows();
  const ReserveLayout layout(p);
  const char* reserve = static_cast<const char*>(reserve_);
  const auto kept = [&](int64_t at) { return reserve + at * size; };
  const int64_t state_bytes = p.batch * p.state * size;
  const int64_t cell_bytes = p.cx ? p.batch * p.hidden * size : 0;
  const int64_t output_bytes = rows * p.width() * size;
  SmallWorkspace own_dh(state_bytes);
  SmallWorkspace own_dc(cell_bytes);
  Workspace<> between(p.layers > 1 ? output_bytes : 0);
  Workspace<> more(p.layers > 2 || p.noise ? output_bytes : 0);
  Workspace<> dropped(p.noise ? output_bytes : 0);
  // The lowest layer of which anything is wanted.
  int64_t lowest = 0;
  if (!wanted.x && !wanted.hx && !wanted.cx) {
    while (lowest < p.layers * p.directions && !any(wanted.weights[lowest])) {
      ++lowest;
    }
    lowest /= p.directions;
  }
  const char* dy = static_cast<const char*>(dy_);
  for (int64_t layer = p.layers; layer-- > lowest;) {
    const char* x = layer ? kept(layout.output(layer - 1)) : static_cast<const char*>(p.x);
    const char* noise =
        layer && p.noise ? static_cast<const char*>(p.noise) + (layer - 1) * output_bytes : nullptr;
    if (noise) {
      multiply_elements(p.dtype, x, noise, dropped.get(), rows * p.width());
      x = dropped.get();
    }
    char* dx = layer == 0            ? static_cast<char*>(wanted.x)
               : layer == lowest     ? nullptr
               : dy == between.get() ? more.get()
                                     : between.get();
    for (int64_t i = 0; i < p.directions; ++i) {
      const int64_t at = layer * p.directions + i;
      const auto first = [&](const void* states, int64_t bytes) {
        return states ? static_cast<const char*>(states) + at * bytes : nullptr;
      };
      // The gradients of the states are formed where they are wanted.
      const auto begin = [&](void* to, char* own, const void* given, int64_t bytes) {
        char* memory = to ? static_cast<char*>(to) + at * bytes : own;
        given ? std::memcpy(memory, first(given, bytes), bytes) : std::memset(memory, 0, bytes);
        return memory;
      };
      BackwardDirection{p,
                        p.weights[at],
                        wanted.weights[at],
                        /*reverse=*/i == 1,
                        x,
                        p.input_of(layer),
                        first(p.hx, state_bytes),
                        first(p.cx, cell_bytes),
                        kept(layout.output(layer)) + i * p.state * size,
                        p.width(),
                        kept(layout.gates(layer, i)),
                        kept(layout.cells(layer, i)),
                        kept(layout.cells(layer, i)),
                        kept(layout.unprojected(layer, i)),
                        dy ? dy + i * p.state * size : nullptr,
                        begin(wanted.hx, own_dh.get(), dhy, state_bytes),
                        begin(wanted.cx, own_dc.get(), dcy, cell_bytes),
                        dx,
                        /*adds_to_dx=*/i > 0,
                        /*wants_dh=*/wanted.hx != nullptr}
          .run();
    }
    if (noise && dx) {
      multiply_elements(p.dtype, dx, noise, dx, rows * p.width());
    }
    dy = dx;
  }
}

}  // namespace fastact
