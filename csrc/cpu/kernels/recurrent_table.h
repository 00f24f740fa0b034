// What the instruction sets provide for recurrent layers. Plain C++, as kernel_table.h.
#pragma once

#include <cstdint>

#include "cpu/kernels/kernel_table.h"

namespace fastact {

// What a step computes of its sums; the last one is an LSTM's projection, which is the sum itself.
enum RecurrentCell : int {
  kTanhCell,
  kReluCell,
  kGruCell,
  kLstmCell,
  kProjectionCell,
  kNumRecurrentCells
};
// Gates, in PyTorch's order: r z n, and i f g o.
constexpr int64_t kRecurrentGates[kNumRecurrentCells] = {1, 1, 3, 4, 1};
// Gradients of sums: GRU's n has one of its recurrent part and one of its part from the input.
constexpr int64_t kRecurrentGradients[kNumRecurrentCells] = {1, 1, 4, 4, 1};

// Strides, in elements, from one row to the next.
struct RecurrentRow {
  void* data = nullptr;
  int64_t stride = 0;
};
struct ConstRecurrentRow {
  const void* data = nullptr;
  int64_t stride = 0;
};

// Some rows and neighbouring units of one step; every pointer is to the first of them. What a cell
// does not need is null.
struct RecurrentTile {
  int64_t rows;
  int64_t units;
  ConstRecurrentRow sums;  // W_hh h: gate g is `sums_gate` elements behind the one before
  int64_t sums_gate;
  RecurrentRow gates;  // W_ih x and biases, likewise; become the activations, where `save`
  int64_t gates_gate;
  const void* hn_bias;         // GRU: b_hn
  RecurrentRow hn;             // GRU: gets W_hn h + b_hn, where `save`
  ConstRecurrentRow h;         // GRU: the state before
  ConstRecurrentRow c_before;  // LSTM
  RecurrentRow c;              // LSTM; may be the memory of c_before
  RecurrentRow out;
  bool save;
};

// The same of a step backward.
struct RecurrentBackwardTile {
  int64_t rows;
  int64_t units;
  ConstRecurrentRow sums;  // the state's gradient by the step after, or null
  ConstRecurrentRow dy;    // by the output, or null
  ConstRecurrentRow dh;    // and by what else, or null
  ConstRecurrentRow gates;
  int64_t gates_gate;
  ConstRecurrentRow hn;        // GRU
  ConstRecurrentRow h;         // RNN
  ConstRecurrentRow h_before;  // GRU
  ConstRecurrentRow c;         // LSTM
  ConstRecurrentRow c_before;  // LSTM
  // Of the sums: i f g o; or r z n_h n_x, n's sum from h and from x, so that W_hh's are neighbours;
  // a projection's is the sum of the three gradients.
  RecurrentRow gradients;
  int64_t gradients_gate;
  RecurrentRow dh_before;  // GRU: what the state before gets but through the sums; may be dh
  RecurrentRow dc;         // LSTM: the gradient of c by the step after, then of c_before
};

// c[row][column] = a[row][:] b[:][column]. b's strips are `strip_stride` elements apart, and rows
// of a strip `b_stride`: where b is packed it holds whole registers; else it is read as it lies,
// with strips that are neighbours.
struct RecurrentProduct {
  const void* a;
  int64_t a_stride;
  const void* b;
  int64_t b_stride;
  int64_t strip_stride;
  int64_t k;
  int64_t rows;
  int64_t columns;
  void* c;
  int64_t c_stride;
};

// Of one compute type, float or double.
struct RecurrentKernels {
  int64_t panel_units[kNumRecurrentCells];
  int64_t strip;  // columns
  // Panels [first, last) of w, [gates * hidden][k]: the columns of one are panel_units of the first
  // gate, those of the second, and so on, in strips. Units past the last are 0.
  void (*pack_gates)(RecurrentCell cell, const void* w, int64_t hidden, int64_t k, int64_t first,
                     int64_t last, void* packed);
  // Strips [first, last) of b, [k][n]. Columns past the last are 0.
  void (*pack_strips)(const void* b, int64_t k, int64_t n, int64_t first, int64_t last,
                      void* packed);
  void (*multiply)(const RecurrentProduct& product);
  void (*cell[kNumRecurrentCells])(const RecurrentTile& tile);
  void (*cell_backward[kNumRecurrentCells])(const RecurrentBackwardTile& tile);
};

}  // namespace fastact
