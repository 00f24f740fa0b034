// isa: baseline avx2 avx512
#include "cpu/kernels/softmax.h"

namespace fastact::FASTACT_ISA {
extern const SoftmaxKernels softmax_double;
const SoftmaxKernels softmax_double = kSoftmaxKernels<double>;
}  // namespace fastact::FASTACT_ISA
