// isa: baseline avx2 avx512 avx512_bf16
#include "cpu/kernels/softmax.h"

namespace fastact::FASTACT_ISA {
extern const SoftmaxKernels softmax_bfloat16;
const SoftmaxKernels softmax_bfloat16 = kSoftmaxKernels<BFloat16>;
}  // namespace fastact::FASTACT_ISA
