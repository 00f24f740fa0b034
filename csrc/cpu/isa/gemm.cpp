// isa: baseline avx2 avx512
#include "cpu/kernels/gemm.h"

namespace fastact::FASTACT_ISA {
extern const GemmKernels gemm_float;
extern const GemmKernels gemm_double;
extern const GemmKernels gemm_bfloat16;
extern const GemmKernels gemm_half;
const GemmKernels gemm_float = kGemmKernels<float>;
const GemmKernels gemm_double = kGemmKernels<double>;
const GemmKernels gemm_bfloat16 = kGemmKernels<BFloat16>;
const GemmKernels gemm_half = kGemmKernels<Half>;
}  // namespace fastact::FASTACT_ISA
