// The launches of activations and gated units, for one dtype.
#include "cuda/kernels/elementwise.h"
#include "cuda/launches.h"

namespace fastact {
namespace {

using T = FASTACT_TYPE;

template <class A>
void start(const void* x, void* y, int64_t n, const double* parameters, DeviceStream stream) {
  forward<A>(static_cast<const T*>(x), static_cast<T*>(y), n, parameters, stream);
}

template <class A>
void start_backward(const void* grad, const void* saved, void* dx, int64_t n,
                    const double* parameters, DeviceStream stream) {
  backward<A>(static_cast<const T*>(grad), static_cast<const T*>(saved), static_cast<T*>(dx), n,
              parameters, stream);
}

template <class A>
void start_gated(const void* x, void* y, int64_t outer, int64_t length, bool gate_first,
                 DeviceStream stream) {
  gated<A>(static_cast<const T*>(x), static_cast<T*>(y), outer, length, gate_first, stream);
}

template <class A>
void start_gated_backward(const void* grad, const void* x, void* dx, int64_t outer, int64_t length,
                          bool gate_first, DeviceStream stream) {
  gated_backward<A>(static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<T*>(dx),
                    outer, length, gate_first, stream);
}

template <class List>
struct Unary;
template <class... A>
struct Unary<ActivationList<A...>> {
  static constexpr ElementwiseLaunches::Forward forward[] = {start<A>...};
  static constexpr ElementwiseLaunches::Backward backward[] = {start_backward<A>...};
};

// The activations of enum Gate.
template <class... A>
struct Gates {
  static constexpr ElementwiseLaunches::Gated forward[] = {start_gated<A>...};
  static constexpr ElementwiseLaunches::GatedBackward backward[] = {start_gated_backward<A>...};
};
using AllGates = Gates<Sigmoid, Silu, Gelu, Relu>;

}  // namespace

const ElementwiseLaunches FASTACT_TABLE(elementwise) = {Unary<Activations>::forward,
                                                        Unary<Activations>::backward,
                                                        AllGates::forward, AllGates::backward};

}  // namespace fastact
