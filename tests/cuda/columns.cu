// Compiled by tools/cuda_gate.py, not run: every kernel of its family.
#include "cuda/kernels/epilogue.h"
#include "cuda/kernels/prelu.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class A, class T>
void fused(T* p, compute_t<T>* parts, const double* parameters) {
  epilogue<A>(p, p, p, p, p, 1, 1, parameters, nullptr);
  epilogue_backward<A>(p, p, p, p, parts, 1, 1, parameters, nullptr);
}

template <class T, class... A>
void fused_with_each(ActivationList<A...>, T* p, compute_t<T>* parts, const double* parameters) {
  (fused<A>(p, parts, parameters), ...);
}

}  // namespace

void instantiate(FASTACT_TYPE* p, compute_t<FASTACT_TYPE>* parts, const double* parameters) {
  fused_with_each(Activations(), p, parts, parameters);
  epilogue<Identity>(p, p, p, p, p, 1, 1, parameters, nullptr);
  bias_backward(p, p, parts, 1, 1, nullptr);
  prelu(p, p, p, 1, {1, 1, false}, nullptr);
  prelu_columns_backward(p, p, p, p, p, parts, 1, 1, nullptr);
  prelu_rows_backward(p, p, p, p, p, parts, 1, {1, 1, false}, nullptr);
}

}  // namespace FASTACT_ISA
}  // namespace fastact
