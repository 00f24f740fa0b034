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
};

// The bytes of scratch memory that a forward kernel call needs.
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
