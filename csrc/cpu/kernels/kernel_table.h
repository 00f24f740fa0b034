// The tables of function pointers that the instruction sets fill and dispatch.h chooses from. Plain
// C++: no torch, no intrinsics, nothing inline, so that every object may include it.
#pragma once

#include <cstdint>

namespace fastact {

// The order in which kernel tables hold the dtypes.
enum Dtype : int { kFloat32, kFloat64, kBFloat16Dtype, kFloat16, kNumDtypes };

// y[i] = f(x[i]); x and y have n elements, and may be the same memory.
using UnaryKernel = void (*)(const void* x, void* y, int64_t n, const double* parameters);

// dx[i] = grad[i] * f'(saved[i]); all have n elements, dx may be the memory of grad or saved.
using UnaryBackwardKernel = void (*)(const void* grad, const void* saved, void* dx, int64_t n,
                                     const double* parameters);

// y[i] = x[i] > 0 ? x[i] : slope[i * slope_step] * x[i], slope_step 0 or 1.
using PreluKernel = void (*)(const void* x, const void* slope, int slope_step, void* y, int64_t n);

// dx as above. The slope's gradient, min(x[i], 0) * grad[i], is added to dslope[i] (slope_step 1)
// or summed into dslope[0] (slope_step 0); dslope is float for 16-bit inputs, else the input's
// type. dx or dslope may be null.
using PreluBackwardKernel = void (*)(const void* grad, const void* x, const void* slope,
                                     int slope_step, void* dx, void* dslope, int64_t n);

// The gated units, act(a) * b; glu's gate is the second half: its kernels get the halves swapped.
enum Gate : int { kSigmoidGate, kSiluGate, kGeluGate, kReluGate, kNumGates };

// y[i] = act(a[i]) * b[i].
using GatedKernel = void (*)(const void* a, const void* b, void* y, int64_t n);
// da[i] = grad[i] * b[i] * act'(a[i]), db[i] = grad[i] * act(a[i]).
using GatedBackwardKernel = void (*)(const void* grad, const void* a, const void* b, void* da,
                                     void* db, int64_t n);

// What softmax kernels compute, over `length` elements z = scale * x + mask:
// softmax: exp(z - max) / sum exp(z - max); log_softmax: z - max - log(sum exp(z - max)).
struct SoftmaxArguments {
  int64_t length;
  double scale;
  bool log;
  // The mask has 0 and -inf alone; where it is -inf, x does not count, whatever it is.
  bool select = false;
  // Rows of this length are not neighbours: short ones are not computed side by side.
  bool alone = false;
};

// The bytes of scratch memory that a forward kernel call needs for rows of up to `length`.
using SoftmaxScratch = int64_t (*)(int64_t length);

// Rows of `length` contiguous elements, one after the other. `mask` is null or has an element for
// each of x, with rows `mask_stride` elements apart (0: one row for all).
using SoftmaxRowsKernel = void (*)(const void* x, const void* mask, int64_t mask_stride, void* y,
                                   int64_t rows, const SoftmaxArguments& arguments, void* scratch);

// `columns` neighbouring columns of `length` elements that are `stride` elements apart.
using SoftmaxColumnsKernel = void (*)(const void* x, void* y, int64_t stride, int64_t columns,
                                      const SoftmaxArguments& arguments, void* scratch);

// dx = scale * y * (grad - sum(grad * y)), or for log_softmax grad - exp(y) * sum(grad).
using SoftmaxRowsBackwardKernel = void (*)(const void* grad, const void* y, void* dx, int64_t rows,
                                           const SoftmaxArguments& arguments);
using SoftmaxColumnsBackwardKernel = void (*)(const void* grad, const void* y, void* dx,
                                              int64_t stride, int64_t columns,
                                              const SoftmaxArguments& arguments);

struct SoftmaxKernels {
  SoftmaxScratch rows_scratch;
  SoftmaxScratch columns_scratch;
  SoftmaxRowsKernel rows;
  SoftmaxColumnsKernel columns;
  SoftmaxRowsBackwardKernel rows_backward;
  SoftmaxColumnsBackwardKernel columns_backward;
  // A boolean mask as an additive one: 0 where it is true, else -inf.
  void (*widen_mask)(const void* mask, void* row, int64_t n);
  // dx[i] = 0 where a boolean mask is false.
  void (*clear_masked)(const void* mask, void* dx, int64_t n);
};

// One tile of a matrix product (see kernels/gemm.h): `rows` rows of a, `units` units of k long and
// `row_bytes` apart, by `columns` columns of b, at most a panel, whose rows are `b_bytes` apart: a
// whole number of registers of them, or the last ones are read, and written, beyond. c is of the
// compute type; its rows are `c_stride` elements apart. With `accumulate` they are added to, else
// they begin with `bias`, which has an element for each column, or row, or is null.
struct GemmTile {
  const void* a;
  int64_t row_bytes;
  const void* b;
  int64_t b_bytes;
  int64_t units;
  int64_t rows;
  int columns;
  const void* bias;
  bool bias_per_row;
  bool accumulate;
  void* c;
  int64_t c_stride;
  // Where rows of the dtype are to be stored afterwards, `stored_bytes` apart, or null: fetched
  // meanwhile.
  const void* stored;
  int64_t stored_bytes;
};

// Up to kMaxGemmRows rows of x by `columns` rows of w, along k, as they lie. Strides in elements; c
// and bias are of the compute type.
struct GemmRows {
  const void* x;
  int64_t x_stride;
  const void* w;
  int64_t w_stride;
  int64_t k;
  int64_t rows;
  int64_t columns;
  const void* bias;
  void* c;
  int64_t c_stride;
};
constexpr int64_t kMaxGemmRows = 8;

// One instruction set's matrix product of one dtype. The compute type is double for float64, else
// float. Strides are in elements.
struct GemmKernels {
  int64_t panel;       // columns
  int64_t lanes;       // of them in a register
  int64_t unit_bytes;  // as packed
  bool rows_in_place;  // a needs no packing where its elements along k are neighbours
  int64_t depth;       // elements of k in a unit
  int64_t block;       // units that one chain of sums takes
  void (*tile)(const GemmTile& tile);
  // Panels [first, last) of b; a panel is ceil(k / depth) * panel units long.
  void (*pack_panels)(const void* b, int64_t k_stride, int64_t n_stride, int64_t k, int64_t n,
                      int64_t first, int64_t last, void* packed);
  // Rows [first, last) of a, ceil(k / depth) units each, packed rows `packed_bytes` apart.
  void (*pack_rows)(const void* a, int64_t row_stride, int64_t k_stride, int64_t k, int64_t first,
                    int64_t last, void* packed, int64_t packed_bytes);
  void (*rows)(const GemmRows& rows);
  // Rows of the compute type into rows of the dtype, or into columns.
  void (*store_rows)(const void* tile, int64_t tile_stride, int64_t rows, int64_t columns, void* c,
                     int64_t c_stride);
  void (*store_transposed)(const void* tile, int64_t tile_stride, int64_t rows, int64_t columns,
                           void* c, int64_t c_stride);
  // tile[i][j] += x[i][j]; the tile is of the compute type.
  void (*add_to_tile)(const void* x, int64_t stride, int64_t rows, int64_t columns, void* tile,
                      int64_t tile_stride);
  // Elements of the dtype into ones of the compute type.
  void (*widen)(const void* x, void* y, int64_t n);
  // sums[j] += x[0][j] + x[1][j] + ..., in an order that `rows` alone decides; sums are of the
  // compute type.
  void (*add_rows)(const void* x, int64_t stride, int64_t rows, int64_t columns, void* sums);
};

// One instruction set's elementwise kernels of one dtype; the unary ones in the order of
// math/activations.h's list.
struct ElementwiseKernels {
  const UnaryKernel* forward;
  const UnaryBackwardKernel* backward;
  PreluKernel prelu;
  PreluBackwardKernel prelu_backward;
  GatedKernel gated[kNumGates];
  GatedBackwardKernel gated_backward[kNumGates];
};

}  // namespace fastact
