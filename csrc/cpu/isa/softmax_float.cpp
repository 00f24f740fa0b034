// isa: baseline avx2 avx512
#include "cpu/kernels/softmax.h"

namespace fastact::FASTACT_ISA {
extern const SoftmaxKernels softmax_float;
const SoftmaxKernels softmax_float = kSoftmaxKernels<float>;
}  // namespace fastact::FASTACT_ISA
