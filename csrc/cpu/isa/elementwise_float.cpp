// isa: baseline avx2 avx512
#include "cpu/kernels/elementwise.h"

namespace fastact::FASTACT_ISA {
extern const ElementwiseKernels elementwise_float;
const ElementwiseKernels elementwise_float = Elementwise<float, Activations>::kKernels;
}  // namespace fastact::FASTACT_ISA
