// isa: baseline avx2 avx512
#include "cpu/kernels/elementwise.h"

namespace fastact::FASTACT_ISA {
extern const ElementwiseKernels elementwise_half;
const ElementwiseKernels elementwise_half = Elementwise<Half, Activations>::kKernels;
}  // namespace fastact::FASTACT_ISA
