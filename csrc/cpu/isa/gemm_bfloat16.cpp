// isa: avx512_bf16
#include "cpu/kernels/gemm.h"

namespace fastact::FASTACT_ISA {
extern const GemmKernels gemm_bfloat16;
const GemmKernels gemm_bfloat16 = kGemmKernels<BFloat16>;
}  // namespace fastact::FASTACT_ISA
