// Recurrent layers as a library: all layers and directions of a call on raw memory, no tensors.
//
// Rows are those of packed sequences: the steps one after the other, in each the sequences that
// have not ended, the longest first. Where all are as long, that is [T, B, ...].
//
// A step is one product of the state with W_hh, which is packed once a call so that the gates of
// some units lie side by side, and the cell on each tile of it while that is in the L1. The inputs'
// part is formed before, as one product for many steps.
//
// Values depend on neither the number of threads nor the other sequences, but for a batch of 1 and
// a call of one step: these read W_hh as it lies, by other sums.
#pragma once

#include <cstdint>

#include "cpu/kernels/recurrent_table.h"
#include "cpu/workspace.h"

namespace fastact {

// Of one layer and direction, dense, in the order of torch.nn's modules. Biases are null together.
struct RecurrentWeights {
  const void* w_ih;  // [gates * H, I]; I of the layers above the first: directions * P
  const void* w_hh;  // [gates * H, P]
  const void* b_ih;  // [gates * H]
  const void* b_hh;
  const void* w_hr;  // [P, H] of an LSTM that projects, else null, and P = H
};

struct RecurrentProblem {
  Dtype dtype;  // of every number: kFloat32 or kFloat64
  RecurrentCell cell;
  int64_t steps;   // T
  int64_t batch;   // B
  int64_t input;   // I
  int64_t hidden;  // H
  int64_t state;   // P
  int64_t layers;
  int64_t directions;
  const int64_t* rows;              // [T]: of each step
  const int64_t* offsets;           // [T + 1]: the first row of each step; N rows in all
  const RecurrentWeights* weights;  // [layers * directions]
  const void* x;                    // [N, I]
  const void* noise;                // [layers - 1, N, directions * P], or null
  const void* hx;                   // [layers * directions, B, P]
  const void* cx;                   // [layers * directions, B, H] of an LSTM

  int64_t gates() const { return kRecurrentGates[cell]; }
  int64_t all_rows() const { return offsets[steps]; }
  int64_t width() const { return directions * state; }  // of an output
  int64_t input_of(int64_t layer) const { return layer ? width() : input; }
};

// Columns from one row of gates to the next. What spreading them gains an LSTM of 256 or 512 units,
// whose rows are 4 and 8 KiB, is 1 to 3 %, in training up to 5 (AVX2, Zen 3, in turns).
template <class Int>
Int recurrent_gate_stride(RecurrentCell cell, const Int& hidden, int64_t size) {
  return spread_row_bytes(hidden * kRecurrentGates[cell] * size) / size;
}

// What forward leaves for backward, beside the output it returns: elements for each row, layer and
// direction (PyTorch: bytes by its saved tensors' storages, in the same unit)
//   tanh, relu  H: the output                                               (PyTorch: H)
//   GRU         5 H: the output, r, z, n, W_hn h + b_hn                     (PyTorch: 7 H)
//   LSTM        5 H + P: the output, i, f, g, o, c; and H where it projects (PyTorch: 16.4 H)
// of 4 bytes, or of 8 in float64, and what the stride of gates has more. The
// output is kept a second time so that what the operator returned may be written to. tanh(c) is
// formed again, which takes as long as reading it.
template <class Int>
Int recurrent_reserve_columns(RecurrentCell cell, const Int& hidden, const Int& state, int64_t size,
                              bool projects) {
  Int columns = state;
  if (cell == kGruCell || cell == kLstmCell) {
    columns = columns + recurrent_gate_stride(cell, hidden, size) + hidden;
  }
  return projects ? columns + hidden : columns;
}

// y [N, directions * P], hy and cy as hx and cx; reserve as above, or null.
void recurrent_forward(const RecurrentProblem& problem, void* y, void* hy, void* cy, void* reserve);

// The gradients that are wanted, others null; dense, as what they are of.
struct RecurrentWeightGradients {
  void* w_ih;
  void* w_hh;
  void* b_ih;
  void* b_hh;
  void* w_hr;
};
struct RecurrentGradientsWanted {
  void* x;
  void* hx;
  void* cx;
  RecurrentWeightGradients* weights;  // [layers * directions]
};
// dy, dhy and dcy are null where they are 0.
void recurrent_backward(const RecurrentProblem& problem, const void* reserve, const void* dy,
                        const void* dhy, const void* dcy, const RecurrentGradientsWanted& wanted);

}  // namespace fastact
