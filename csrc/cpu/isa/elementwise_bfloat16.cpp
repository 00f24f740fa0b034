// isa: baseline avx2 avx512 avx512_bf16
#include "cpu/kernels/elementwise.h"

namespace fastact::FASTACT_ISA {
extern const ElementwiseKernels elementwise_bfloat16;
const ElementwiseKernels elementwise_bfloat16 = Elementwise<BFloat16, Activations>::kKernels;
}  // namespace fastact::FASTACT_ISA
