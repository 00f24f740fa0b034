// isa: baseline avx2 avx512
#include "cpu/kernels/elementwise.h"

namespace fastact::FASTACT_ISA {
extern const ElementwiseKernels elementwise_double;
const ElementwiseKernels elementwise_double = Elementwise<double, Activations>::kKernels;
}  // namespace fastact::FASTACT_ISA
