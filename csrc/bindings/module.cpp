// The Python module fastact._C: the low-overhead way to the operators, a row per function.
#include "bindings/function.h"
#include "bindings/site/site.h"
#include "math/activations.h"
#include "ops/conv/conv.h"
#include "ops/gated/gated.h"
#include "ops/linear/linear.h"
#include "ops/prelu/prelu.h"
#include "ops/recurrent/recurrent.h"
#include "ops/softmax/softmax.h"

namespace fastact {
namespace {

template <class A>
using SchemasOf = UnarySchemas<A::num_parameters>;

// NAME and NAME_ of an activation.
template <class A>
constinit Operator<typename SchemasOf<A>::Forward> forward_op{A::name};

template <class A>
struct InplaceName {
  char text[32] = {};
  constexpr InplaceName() {
    int i = 0;
    for (; A::name[i]; ++i) {
      text[i] = A::name[i];
    }
    text[i] = '_';
  }
};
template <class A>
constexpr InplaceName<A> inplace_name;
template <class A>
constinit Operator<typename SchemasOf<A>::Inplace> inplace_op{inplace_name<A>.text};

template <const auto& op, auto... kLast>
void add_function(PyObject* module) {
  add(module, op.name(), &Function<op, kLast...>::call);
}

template <class... A>
void add_unary(PyObject* module, ActivationList<A...>) {
  (add_function<forward_op<A>>(module), ...);
  (add_function<inplace_op<A>>(module), ...);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  PyObject* module = m.ptr();
  add_unary(module, Activations{});
  add_function<prelu_op>(module);
  add_function<gated_ops[kSigmoidGate].forward>(module);
  add_function<gated_ops[kSiluGate].forward>(module);
  add_function<gated_ops[kGeluGate].forward>(module);
  add_function<gated_ops[kReluGate].forward>(module);
  add_function<softmax_op>(module);
  add_function<log_softmax_op>(module);
  add_function<masked_softmax_op>(module);
  add_function<rnn_op>(module);
  add_function<gru_op>(module);
  add_function<lstm_op>(module);
  add_function<linear_op, /*save_output=*/true>(module);
  add_function<linear_packed_op>(module);
  add_function<conv_op, /*save_output=*/true>(module);
  add_function<conv_packed_op>(module);
  site::add_site(module);
}

}  // namespace fastact
