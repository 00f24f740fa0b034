// Compiled by tools/cuda_gate.py, not run: every kernel of its family.
#include "cuda/kernels/softmax.h"
#include "cuda/kernels/softmax_columns.h"

namespace fastact {
inline namespace FASTACT_ISA {

void instantiate(FASTACT_TYPE* p, const SoftmaxArguments<FASTACT_TYPE>& a) {
  softmax(p, p, 1, a, nullptr);
  softmax_backward(p, p, p, 1, a, nullptr);
  softmax_along(p, p, 1, 1, 1, a.scale, a.log, nullptr);
  softmax_along_backward(p, p, p, 1, 1, 1, a.scale, a.log, nullptr);
}

}  // namespace FASTACT_ISA
}  // namespace fastact
