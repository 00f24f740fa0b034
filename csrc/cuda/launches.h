// What csrc/cuda/*.cu offer to csrc/ops/*/cuda.cpp: tables of functions that start kernels, one for
// each family and dtype. Untyped pointers to contiguous elements, and a stream; whoever calls has
// chosen the device and asks for errors afterwards. Plain C++: no torch, no CUDA.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace fastact {

using DeviceStream = CUstream_st*;  // a cudaStream_t

// Each .cu file is compiled once per dtype, with that type's name as FASTACT_TYPE.
#define FASTACT_FOR_DTYPE_(family, type) family##_##type
#define FASTACT_FOR_DTYPE(family, type) FASTACT_FOR_DTYPE_(family, type)
#define FASTACT_TABLE(family) FASTACT_FOR_DTYPE(family, FASTACT_TYPE)

// The tables of a family, by enum Dtype.
#define FASTACT_DECLARE_TABLES(Table, family)                                             \
  extern const Table family##_float, family##_double, family##_BFloat16, family##_Half;   \
  inline constexpr const Table* family##_launches[] = {&family##_float, &family##_double, \
                                                       &family##_BFloat16, &family##_Half};

// As the kernels of csrc/cpu/kernels/kernel_table.h; activations by index, gates by enum Gate.
struct ElementwiseLaunches {
  using Forward = void (*)(const void* x, void* y, int64_t n, const double* parameters,
                           DeviceStream stream);
  using Backward = void (*)(const void* grad, const void* saved, void* dx, int64_t n,
                            const double* parameters, DeviceStream stream);
  // `x` as [outer, 2, length].
  using Gated = void (*)(const void* x, void* y, int64_t outer, int64_t length, bool gate_first,
                         DeviceStream stream);
  using GatedBackward = void (*)(const void* grad, const void* x, void* dx, int64_t outer,
                                 int64_t length, bool gate_first, DeviceStream stream);
  const Forward* forward;
  const Backward* backward;
  const Gated* gated;
  const GatedBackward* gated_backward;
};
FASTACT_DECLARE_TABLES(ElementwiseLaunches, elementwise)

// PReLU's operand as rows of `length` elements, contiguous. Row r's slope is slope[r % slopes], or,
// where slopes are `along` the row, element i's is slope[i].
struct SlopeRows {
  int64_t rows;
  int64_t length;
  int64_t slopes;
  bool along;
};

struct PreluLaunches {
  void (*forward)(const void* x, const void* slope, void* y, const SlopeRows& rows,
                  DeviceStream stream);
  // How many elements of the compute type `parts` needs.
  int64_t (*backward_parts)(const SlopeRows& rows);
  void (*backward)(const void* grad, const void* x, const void* slope, void* dx, void* dslope,
                   void* parts, const SlopeRows& rows, DeviceStream stream);
};
FASTACT_DECLARE_TABLES(PreluLaunches, prelu)

// What softmax takes of rows: `mask` has `mask_dims` dimensions before its contiguous rows, the
// inner ones first; strides in elements, 0 where it is broadcast.
enum class MaskKind : int { kNone, kAdded, kBoolean, kCausal };
constexpr int kMaxMaskDims = 8;
struct SoftmaxRows {
  int64_t rows;
  int64_t length;
  double scale;
  bool log;
  MaskKind mask_kind = MaskKind::kNone;
  const void* mask = nullptr;  // of the dtype, or a byte an element
  int mask_dims = 0;
  int64_t mask_sizes[kMaxMaskDims] = {};
  int64_t mask_strides[kMaxMaskDims] = {};
};

// [outer, length, inner], along `length`.
struct SoftmaxColumns {
  int64_t outer;
  int64_t length;
  int64_t inner;
  double scale;
  bool log;
};

struct SoftmaxLaunches {
  void (*rows)(const void* x, void* y, const SoftmaxRows& a, DeviceStream stream);
  void (*rows_backward)(const void* grad, const void* y, void* dx, const SoftmaxRows& a,
                        DeviceStream stream);
  void (*columns)(const void* x, void* y, const SoftmaxColumns& a, DeviceStream stream);
  void (*columns_backward)(const void* grad, const void* y, void* dx, const SoftmaxColumns& a,
                           DeviceStream stream);
};
FASTACT_DECLARE_TABLES(SoftmaxLaunches, softmax)

// What follows a product: y = act(x + bias + residual) of [rows][columns], where each may be null.
// Without an activation `dbias` alone is computed.
struct EpilogueLaunches {
  using Forward = void (*)(const void* x, const void* bias, const void* residual, void* y,
                           int64_t rows, int64_t columns, const double* parameters,
                           DeviceStream stream);
  using Backward = void (*)(const void* grad, const void* saved, void* dz, void* dbias, void* parts,
                            int64_t rows, int64_t columns, const double* parameters,
                            DeviceStream stream);
  const Forward* forward;    // by activation
  const Backward* backward;  // by activation
  Forward identity;
  Backward identity_backward;
  // How many elements of the compute type `parts` needs.
  int64_t (*backward_parts)(int64_t rows, int64_t columns);
};
FASTACT_DECLARE_TABLES(EpilogueLaunches, epilogue)

// A step of a recurrent cell and of its gradient, as csrc/cuda/kernels/recurrent.h says: [rows] of
// [units], or of gates side by side.
struct RecurrentLaunches {
  void (*rnn)(const void* from_x, const void* from_h, void* h, int64_t rows, int64_t units,
              bool is_tanh, DeviceStream stream);
  void (*rnn_backward)(const void* dh, const void* h, void* gradients, int64_t rows, int64_t units,
                       bool is_tanh, DeviceStream stream);
  void (*lstm)(const void* from_x, const void* from_h, const void* c_before, void* h, void* c,
               void* activated, int64_t rows, int64_t units, DeviceStream stream);
  void (*lstm_backward)(const void* dh, const void* dc, const void* activated, const void* c_before,
                        const void* c, void* gradients, void* dc_before, int64_t rows,
                        int64_t units, DeviceStream stream);
  void (*gru)(const void* from_x, const void* from_h, const void* h_before, void* h,
              void* activated, int64_t rows, int64_t units, DeviceStream stream);
  void (*gru_backward)(const void* dh, const void* activated, const void* h_before, void* gradients,
                       void* dh_before, int64_t rows, int64_t units, DeviceStream stream);
};
FASTACT_DECLARE_TABLES(RecurrentLaunches, recurrent)

}  // namespace fastact
