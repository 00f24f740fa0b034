// Every schema of the library on one screen. The kernels are registered in autograd/ (autograd,
// fake kernels, ATen compositions) and cpu/ and cuda/ (the backends).
#include <sstream>

#include "activation.h"
#include "cpu/dispatch.h"

namespace fastact {
namespace {

// fastact::NAME(Tensor self, float P=default, ...) -> Tensor, NAME_ and NAME_backward. `saved` is
// what backward reads: the output, or the input where the output does not suffice.
template <class A>
void define_unary(torch::Library& m) {
  std::ostringstream parameters;
  parameters.precision(17);
  for (int i = 0; i < A::num_parameters; ++i) {
    parameters << ", float " << A::parameters[i].name << "=" << std::showpoint
               << A::parameters[i].value;
  }
  const std::string name = A::name;
  const std::string rest = parameters.str() + ")";
  // pointwise: jagged nested tensors run the operator on their values. The in-place operator is for
  // eager mode alone, and has no Tag::inplace (see autograd/unary.cpp).
  m.def((name + "(Tensor self" + rest + " -> Tensor").c_str(), {at::Tag::pointwise});
  m.def((name + "_(Tensor(a!) self" + rest + " -> Tensor(a!)").c_str());
  m.def((name + "_backward(Tensor grad, Tensor saved" + rest + " -> Tensor").c_str(),
        {at::Tag::pointwise});
}

}  // namespace

TORCH_LIBRARY(fastact, m) {
  for_each_activation([&](auto activation, int) { define_unary<decltype(activation)>(m); });

  m.def("prelu(Tensor self, Tensor weight) -> Tensor");
  m.def("prelu_backward(Tensor grad, Tensor self, Tensor weight) -> (Tensor, Tensor)");

  // activation(input @ weight.T + bias). `activation` is a registry name, `params` its parameters
  // in the registry's order (empty: the defaults), `slope` the learnable tensor of "prelu".
  m.def(
      "linear(Tensor input, Tensor weight, Tensor? bias=None, str? activation=None, "
      "float[] params=[], Tensor? slope=None) -> Tensor");

  // Facts about the library: the CPU instruction set in use, those built (narrowest first), and
  // whether FASTACT_DISABLE=1 sends every call to ATen.
  m.def("instruction_set() -> str", [] { return std::string(kernels().name); });
  m.def("instruction_sets() -> str[]", &built_instruction_sets);
  m.def("enabled() -> bool", &enabled);
}

}  // namespace fastact
