// isa: baseline avx2 avx512
#include "cpu/kernels/softmax.h"

namespace fastact::FASTACT_ISA {
extern const SoftmaxKernels softmax_half;
const SoftmaxKernels softmax_half = kSoftmaxKernels<Half>;
}  // namespace fastact::FASTACT_ISA
