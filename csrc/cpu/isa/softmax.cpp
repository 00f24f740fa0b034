// isa: baseline avx2 avx512
#include "cpu/kernels/softmax.h"

namespace fastact::FASTACT_ISA {
extern const SoftmaxKernels softmax_float;
extern const SoftmaxKernels softmax_double;
extern const SoftmaxKernels softmax_bfloat16;
extern const SoftmaxKernels softmax_half;
const SoftmaxKernels softmax_float = kSoftmaxKernels<float>;
const SoftmaxKernels softmax_double = kSoftmaxKernels<double>;
const SoftmaxKernels softmax_bfloat16 = kSoftmaxKernels<BFloat16>;
const SoftmaxKernels softmax_half = kSoftmaxKernels<Half>;
}  // namespace fastact::FASTACT_ISA
