// The elementwise kernels on the emulator, by activation, dtype and pointers.
#include "cuda/kernels/elementwise.h"

#include "library.h"

namespace fastact {
namespace {

#ifdef FASTACT_TEST_FEW  // enough to show a fault in the loops
using Tested = ActivationList<Relu, Gelu>;
#else
using Tested = Activations;
#endif
// The formulas are one text for all types: those of 2 and 8 bytes are run with a few activations.
using Few = ActivationList<Relu, Gelu, Softplus>;

template <class T, class... A>
bool run_forward(ActivationList<A...>, const std::string& name, const void* x, void* y, int64_t n,
                 const double* parameters) {
  return (
      (name == A::name &&
       (forward<A>(static_cast<const T*>(x), static_cast<T*>(y), n, parameters, nullptr), true)) ||
      ...);
}

template <class T, class... A>
bool run_backward(ActivationList<A...>, const std::string& name, const void* grad,
                  const void* saved, void* dx, int64_t n, const double* parameters) {
  return (
      (name == A::name && (backward<A>(static_cast<const T*>(grad), static_cast<const T*>(saved),
                                       static_cast<T*>(dx), n, parameters, nullptr),
                           true)) ||
      ...);
}

// f(gate's activation): by the order of enum Gate.
template <class F>
bool with_gate(int gate, const F& f) {
  switch (gate) {
    case 0:
      return f(Sigmoid());
    case 1:
      return f(Silu());
    case 2:
      return f(Gelu());
    default:
      return f(Relu());
  }
}

template <class T>
struct ListOf {
  using type = Few;
};
template <>
struct ListOf<float> {
  using type = Tested;
};

}  // namespace
}  // namespace fastact

using namespace fastact;

TEST_API bool test_forward(const char* name, int dtype, const void* x, void* y, int64_t n,
                           const double* parameters) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    return run_forward<T>(typename ListOf<T>::type(), name, x, y, n, parameters);
  });
}

TEST_API bool test_backward(const char* name, int dtype, const void* grad, const void* saved,
                            void* dx, int64_t n, const double* parameters) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    return run_backward<T>(typename ListOf<T>::type(), name, grad, saved, dx, n, parameters);
  });
}

TEST_API bool test_gated(int gate, int dtype, const void* x, void* y, int64_t outer, int64_t length,
                         bool gate_first) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    return with_gate(gate, [&](auto activation) {
      gated<decltype(activation)>(static_cast<const T*>(x), static_cast<T*>(y), outer, length,
                                  gate_first, nullptr);
      return true;
    });
  });
}

TEST_API bool test_gated_backward(int gate, int dtype, const void* grad, const void* x, void* dx,
                                  int64_t outer, int64_t length, bool gate_first) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    return with_gate(gate, [&](auto activation) {
      gated_backward<decltype(activation)>(static_cast<const T*>(grad), static_cast<const T*>(x),
                                           static_cast<T*>(dx), outer, length, gate_first, nullptr);
      return true;
    });
  });
}
