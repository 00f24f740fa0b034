// isa: baseline avx2 avx512
#include "cpu/kernels/conv.h"

namespace fastact::FASTACT_ISA {
extern const ConvKernels conv_float;
extern const ConvKernels conv_double;
extern const ConvKernels conv_bfloat16;
extern const ConvKernels conv_half;
const ConvKernels conv_float = kConvKernels<float>;
const ConvKernels conv_double = kConvKernels<double>;
const ConvKernels conv_bfloat16 = kConvKernels<BFloat16>;
const ConvKernels conv_half = kConvKernels<Half>;
}  // namespace fastact::FASTACT_ISA
