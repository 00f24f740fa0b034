// isa: baseline avx2 avx512
#include "cpu/kernels/recurrent.h"

namespace fastact::FASTACT_ISA {
extern const RecurrentKernels recurrent_float;
extern const RecurrentKernels recurrent_double;
const RecurrentKernels recurrent_float = kRecurrentKernels<float>;
const RecurrentKernels recurrent_double = kRecurrentKernels<double>;
}  // namespace fastact::FASTACT_ISA
