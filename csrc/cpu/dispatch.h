// Which kernels run: the processor is asked once, when the library is loaded.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "cpu/kernels/conv_table.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/kernels/recurrent_table.h"

namespace fastact {

struct Kernels {
  const char* name;  // the instruction set
  ElementwiseKernels elementwise[kNumDtypes];
  SoftmaxKernels softmax[kNumDtypes];
  GemmKernels gemm[kNumDtypes];
  ConvKernels conv[kNumDtypes];
  RecurrentKernels recurrent[2];  // of float and double: other types are widened before
};

// The widest set that the processor has, or the one that FASTACT_ISA names.
const Kernels& kernels();

// The sets in this binary, narrowest first.
std::vector<std::string> built_instruction_sets();

// False under FASTACT_DISABLE=1: then every call runs as the ATen composition.
bool enabled();

// The row of the kernel tables for a dtype that is_kernel_dtype() accepts.
inline Dtype table_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return kFloat32;
    case at::kDouble:
      return kFloat64;
    case at::kBFloat16:
      return kBFloat16Dtype;
    default:
      return kFloat16;
  }
}

// The type that kernels compute a dtype in, and the bytes of an element of each.
inline Dtype compute_dtype(Dtype dtype) { return dtype == kFloat64 ? kFloat64 : kFloat32; }
inline int64_t size_of(Dtype dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }
inline int64_t compute_size_of(Dtype dtype) { return size_of(compute_dtype(dtype)); }

}  // namespace fastact
