// Compiled by tools/cuda_gate.py, not run: every kernel of its family.
#include "cuda/kernels/elementwise.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class T, class... A>
void each(ActivationList<A...>, T* p, const double* parameters) {
  (forward<A>(p, p, 1, parameters, nullptr), ...);
  (backward<A>(p, p, p, 1, parameters, nullptr), ...);
}

template <class T, class... A>
void each_gate(ActivationList<A...>, T* p) {
  (gated<A>(p, p, 1, 1, true, nullptr), ...);
  (gated_backward<A>(p, p, p, 1, 1, true, nullptr), ...);
}

}  // namespace

void instantiate(FASTACT_TYPE* p, const double* parameters) {
  each(Activations(), p, parameters);
  each_gate(ActivationList<Sigmoid, Silu, Gelu, Relu>(), p);
}

}  // namespace FASTACT_ISA
}  // namespace fastact
