// Every activation's formula, forward and backward, in a kernel: compiled, not run, by
// tests/test_cuda_compile.py. The formula is made on the host, so that a float kernel converts no
// double parameter.
#include "math/activations.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class Formula, class T>
__global__ void apply(Formula f, bool saves_output, const T* x, const T* grad, T* y, T* dx, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    y[i] = f.forward(x[i]);
    dx[i] = f.backward(grad[i], saves_output ? y[i] : x[i]);
  }
}

template <class A, class T>
void instantiate_one() {
  double parameters[4] = {};
  for (int i = 0; i < A::num_parameters; ++i) {
    parameters[i] = A::parameters[i].value;
  }
  apply<typename A::template Formula<T>, T><<<1, 1>>>(typename A::template Formula<T>(parameters),
                                                      A::saves_output(parameters), nullptr, nullptr,
                                                      nullptr, nullptr, 0);
}

template <class... A>
void instantiate(ActivationList<A...>) {
  (instantiate_one<A, float>(), ...);
  (instantiate_one<A, double>(), ...);
}

}  // namespace

void instantiate_all() { instantiate(Activations{}); }

}  // namespace FASTACT_ISA
}  // namespace fastact
