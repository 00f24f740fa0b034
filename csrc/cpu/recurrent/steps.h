// What forward and backward share: the order of steps, what is kept between them, how threads share
// a step, and its products.
#pragma once

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/recurrent/recurrent.h"
#include "cpu/team.h"
#include "cpu/workspace.h"

namespace fastact {

// What a small layer works in lies on the stack.
using SmallWorkspace = Workspace<1 << 12>;

// ---- the reserve --------------------------------------------------------------------------------

// Where its parts begin, in elements; each has a row for every row of the sequences, but the output
// of a layer, whose rows hold all directions.
class ReserveLayout {
 public:
  explicit ReserveLayout(const RecurrentProblem& p)
      : p_(p),
        columns_(recurrent_reserve_columns(p.cell, p.hidden, p.state, size_of(p.dtype),
                                           p.weights[0].w_hr)) {}

  int64_t output(int64_t layer) const { return layer * p_.directions * p_.all_rows() * columns_; }
  // Activated gates.
  int64_t gates(int64_t layer, int64_t direction) const {
    return output(layer) + p_.all_rows() * (p_.width() + direction * (columns_ - p_.state));
  }
  // Of a GRU W_hn h + b_hn, of an LSTM c.
  int64_t cells(int64_t layer, int64_t direction) const {
    return gates(layer, direction) +
           p_.all_rows() * recurrent_gate_stride(p_.cell, p_.hidden, size_of(p_.dtype));
  }
  // Of an LSTM that projects: h before that.
  int64_t unprojected(int64_t layer, int64_t direction) const {
    return cells(layer, direction) + p_.all_rows() * p_.hidden;
  }

 private:
  const RecurrentProblem& p_;
  int64_t columns_;
};

// ---- the order of steps -------------------------------------------------------------------------

// The steps of one direction. A row of step t has a step t + 1 if it is among rows(t + 1), and a
// step t - 1 if t > 0: what comes before it in this direction is one of the two.
struct StepOrder {
  const RecurrentProblem& p;
  bool reverse;

  int64_t step(int64_t i) const { return reverse ? p.steps - 1 - i : i; }
  int64_t rows(int64_t t) const { return t < p.steps ? p.rows[t] : 0; }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t after(int64_t t) const { return reverse ? t - 1 : t + 1; }

  // f(row, end, has_before, has_after) for the rows [row, end) of step t that are alike.
  template <class F>
  void alike(int64_t t, int64_t row, int64_t end, const F& f) const {
    if (row >= end) {
      return;
    }
    const int64_t longer = std::clamp(rows(t + 1), row, end);
    const bool begun = t > 0;
    if (row < longer) {
      f(row, longer, reverse || begun, !reverse || begun);
    }
    if (longer < end) {
      f(longer, end, !reverse && begun, reverse && begun);
    }
  }

  // f(row, the row of y that is its last state, or -1 where it has no step).
  template <class F>
  void last_states(const F& f) const {
    int64_t t = p.steps - 1;
    for (int64_t row = 0; row < p.batch; ++row) {
      while (t >= 0 && p.rows[t] <= row) {
        --t;
      }
      f(row, t < 0 ? -1 : p.offsets[reverse ? 0 : t] + row);
    }
  }
};

// ---- threads ------------------------------------------------------------------------------------

// The rows and the units of a step that a member of a team computes. Where rows are shared out,
// members need not wait for each other.
struct StepShare {
  int64_t row, row_end;
  int64_t unit, unit_end;
};

struct StepPlan {
  int64_t threads;
  bool by_rows;

  static StepPlan choose(const RecurrentProblem& p);

  // `grain`: units that stay together.
  StepShare share(const Team& team, int64_t member, int64_t rows, int64_t units,
                  int64_t grain) const {
    const int64_t size = team.size();
    if (by_rows) {
      return {rows * member / size, rows * (member + 1) / size, 0, units};
    }
    const int64_t pieces = (units + grain - 1) / grain;
    return {0, rows, std::min(pieces * member / size * grain, units),
            std::min(pieces * (member + 1) / size * grain, units)};
  }
};

// ---- products -----------------------------------------------------------------------------------

// Rows of a tile: its 24 KiB and what meets it stay in the L1 and L2.
constexpr int64_t kStepTileRows = 96;
constexpr int64_t kStepTileRowBytes = 256;

// to[i] = a[i] * b[i], and to[i] = from[i], on all threads.
void multiply_elements(Dtype dtype, const void* a, const void* b, void* to, int64_t n);
void copy_bytes(const void* from, void* to, int64_t bytes);

}  // namespace fastact
