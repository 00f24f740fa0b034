// Every schema of the library on one screen. Each family registers its kernels in its folder of
// ops/.
#include <torch/library.h>

#include <sstream>

#include "core/activation.h"
#include "core/epilogue.h"
#include "cpu/coverage.h"
#include "cpu/memory.h"
#include "ops/conv/conv.h"
#include "ops/gated/gated.h"

namespace fastact {
namespace {

// fastact::NAME(Tensor self, float P=default, ...) -> Tensor, NAME_ and NAME_backward. `saved` is
// what backward reads: the output, or the input where the output does not suffice.
void define_unary(torch::Library& m, const Activation& activation) {
  std::ostringstream text;
  text.precision(17);
  text << std::showpoint;
  for (int i = 0; i < activation.num_parameters; ++i) {
    text << ", float " << activation.parameter_names[i] << "=" << activation.parameter_defaults[i];
  }
  const std::string parameters = text.str();
  const std::string name = activation.name;
  // pointwise: jagged nested tensors run the operator on their values. The in-place operator is for
  // eager mode alone, and has no Tag::inplace (see ops/unary/autograd.cpp).
  m.def((name + "(Tensor self" + parameters + ") -> Tensor").c_str(), {at::Tag::pointwise});
  m.def((name + "_(Tensor(a!) self" + parameters + ") -> Tensor(a!)").c_str());
  m.def((name + "_backward(Tensor grad, Tensor saved" + parameters + ") -> Tensor").c_str(),
        {at::Tag::pointwise});
}

}  // namespace

TORCH_LIBRARY(fastact, m) {
  for (const Activation& activation : activations()) {
    define_unary(m, activation);
  }

  m.def("prelu(Tensor self, Tensor weight) -> Tensor");
  m.def("prelu_backward(Tensor grad, Tensor self, Tensor weight) -> (Tensor, Tensor)");

  // Gated units: act(a) * b, a and b the halves of self along dim (glu: a * sigmoid(b)).
  for (const GatedOperators& unit : gated_ops) {
    const std::string name = unit.forward.name();
    m.def((name + "(Tensor self, int dim=-1) -> Tensor").c_str());
    m.def((name + "_backward(Tensor grad, Tensor self, int dim) -> Tensor").c_str());
  }

  // softmax(scale * self); backward reads the output.
  m.def("softmax(Tensor self, int dim=-1, float scale=1.) -> Tensor");
  m.def("softmax_backward(Tensor grad, Tensor output, int dim, float scale) -> Tensor");
  m.def("log_softmax(Tensor self, int dim=-1) -> Tensor");
  m.def("log_softmax_backward(Tensor grad, Tensor output, int dim) -> Tensor");
  // softmax(scale * self + mask) with an additive or, where false elements take no part, a boolean
  // mask that broadcasts; is_causal: row i of the last two dimensions takes its first i + 1
  // elements.
  m.def(
      "masked_softmax(Tensor self, Tensor? mask=None, int dim=-1, float scale=1., "
      "bool is_causal=False) -> Tensor");
  // The gradient of self, 0 where a boolean mask is false or, is_causal, above the diagonal.
  m.def(
      "masked_softmax_backward(Tensor grad, Tensor output, Tensor? mask, int dim, float scale, "
      "bool is_causal) -> Tensor");

  // activation(input @ weight.T + bias + residual). `activation` is a registry name, `params` its
  // parameters in the registry's order (empty: the defaults), `slope` the learnable tensor of
  // "prelu". With save_output=False backward reads the pre-activation, so that the
  // output may be written to.
  m.def(
      "linear(Tensor input, Tensor weight, Tensor? bias=None, str? activation=None, "
      "float[] params=[], Tensor? slope=None, Tensor? residual=None, bool save_output=True) -> "
      "Tensor");
  // Output, and the pre-activation, for activations whose backward reads that.
  m.def(
      "linear_training(Tensor input, Tensor weight, Tensor? bias, str? activation, float[] params, "
      "Tensor? slope) -> (Tensor, Tensor)");
  // The gradients of input, weight, bias, slope and residual, empty where `mask` is false. `saved`
  // is the output where the activation's backward reads that and save_output is true, else the
  // pre-activation; each other tensor is there where a gradient needs it.
  m.def(
      "linear_backward(Tensor grad, Tensor? saved, Tensor? input, Tensor? weight, Tensor? bias, "
      "Tensor? slope, str? activation, float[] params, bool[5] mask, bool save_output=True) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  // Whether the backward of an activation reads its output rather than its input.
  m.def("saves_output(str activation, float[] params=[]) -> bool",
        [](c10::string_view activation, at::ArrayRef<double> parameters) {
          return Epilogue::without_slope("saves_output", activation, parameters).saves_output();
        });
  // linear with a weight whose panels were packed before: `packed` is what pack_linear(weight)
  // returned in this process, and the caller answers for it still being that. Empty: not packed.
  m.def("pack_linear(Tensor weight) -> Tensor");
  m.def(
      "linear_packed(Tensor input, Tensor packed, Tensor weight, Tensor? bias=None, "
      "str? activation=None, float[] params=[], Tensor? slope=None, Tensor? residual=None) -> "
      "Tensor");
  // The algorithm of linear's product for these operands (cpu/gemm/gemm.h), or "aten".
  m.def("linear_algorithm(Tensor input, Tensor weight, bool packed=False) -> str");

  // activation(convolution of input by weight + bias + residual), in 1, 2 or 3 dimensions by those
  // of weight, as linear for the rest. padding="same" and padding modes are the caller's.
  m.def(
      "conv(Tensor input, Tensor weight, Tensor? bias=None, SymInt[1] stride=1, "
      "SymInt[1] padding=0, SymInt[1] dilation=1, SymInt groups=1, str? activation=None, "
      "float[] params=[], Tensor? slope=None, Tensor? residual=None, bool save_output=True) -> "
      "Tensor");
  m.def(
      "conv_training(Tensor input, Tensor weight, Tensor? bias, SymInt[1] stride, "
      "SymInt[1] padding, SymInt[1] dilation, SymInt groups, str? activation, float[] params, "
      "Tensor? slope) -> (Tensor, Tensor)");
  m.def(
      "conv_backward(Tensor grad, Tensor? saved, Tensor input, Tensor weight, Tensor? bias, "
      "Tensor? slope, SymInt[1] stride, SymInt[1] padding, SymInt[1] dilation, SymInt groups, "
      "str? activation, float[] params, bool[5] mask, bool save_output=True) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  // As pack_linear and linear_packed. `winograd` (none: the setting) decides what is packed, and so
  // how conv_packed computes; conv_packed needs it where nothing was packed.
  m.def(
      "pack_conv(Tensor weight, SymInt[1] stride=1, SymInt[1] padding=0, SymInt[1] dilation=1, "
      "SymInt groups=1, str? winograd=None) -> Tensor");
  m.def(
      "conv_packed(Tensor input, Tensor packed, Tensor weight, Tensor? bias=None, "
      "SymInt[1] stride=1, SymInt[1] padding=0, SymInt[1] dilation=1, SymInt groups=1, "
      "str? activation=None, float[] params=[], Tensor? slope=None, Tensor? residual=None, "
      "str? winograd=None) -> Tensor");
  // The algorithm of conv for these operands (cpu/conv/conv.h), or "aten".
  m.def(
      "conv_algorithm(Tensor input, Tensor weight, SymInt[1] stride=1, SymInt[1] padding=0, "
      "SymInt[1] dilation=1, SymInt groups=1, bool packed=False) -> str");
  // Which of Winograd's algorithms 3x3 convolutions may use: "off", "safe" (the default) or "fast".
  m.def("set_winograd(str setting) -> ()", &set_winograd);
  m.def("winograd() -> str", &winograd);

  // Recurrent layers over whole sequences: input [T, B, I], output [T, B, directions * H], states
  // [layers * directions, B, H] (an LSTM with proj_size P: P in place of H but for cx), weights as
  // torch.nn's modules hold them. With lengths, int64 [B] on the CPU, the steps past a sequence's
  // end do not count: output is 0 there, and hy the state at the end. dropout_noise [layers - 1, T,
  // B, directions * H] multiplies the inputs of the upper layers.
  const std::string layer_options =
      "Tensor? lengths=None, Tensor? dropout_noise=None, bool has_biases=True, "
      "bool bidirectional=False";
  const std::string saved_options =
      "Tensor? lengths, Tensor? dropout_noise, Tensor reserve, bool has_biases, "
      "bool bidirectional";
  const auto define_layer = [&](const std::string& name, const std::string& state,
                                const std::string& more, const std::string& results) {
    const std::string arguments = "Tensor input, Tensor hx, " + state + "Tensor[] weights, ";
    m.def((name + "(" + arguments + layer_options + more + ") -> (" + results + ")").c_str());
    // The same, and what backward reads.
    m.def((name + "_training(" + arguments + layer_options + more + ") -> (" + results +
           ", Tensor reserve)")
              .c_str());
  };
  define_layer("rnn", "", ", str nonlinearity='tanh'", "Tensor output, Tensor hy");
  define_layer("gru", "", "", "Tensor output, Tensor hy");
  define_layer("lstm", "Tensor cx, ", "", "Tensor output, Tensor hy, Tensor cy");
  // The gradients of input, hx, (cx) and weights, empty where `mask`, in that order, is false. A
  // gradient of an output that is None is 0.
  m.def(("rnn_backward(Tensor? grad_output, Tensor? grad_hy, Tensor input, Tensor hx, "
         "Tensor[] weights, " +
         saved_options + ", str nonlinearity, bool[] mask) -> (Tensor, Tensor, Tensor[])")
            .c_str());
  m.def(("gru_backward(Tensor? grad_output, Tensor? grad_hy, Tensor input, Tensor hx, "
         "Tensor[] weights, " +
         saved_options + ", bool[] mask) -> (Tensor, Tensor, Tensor[])")
            .c_str());
  m.def(("lstm_backward(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, Tensor input, "
         "Tensor hx, Tensor cx, Tensor[] weights, " +
         saved_options + ", bool[] mask) -> (Tensor, Tensor, Tensor, Tensor[])")
            .c_str());
  // One step of a layer: input [B, I], states [B, H].
  m.def(
      "rnn_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, "
      "Tensor? b_hh=None, str nonlinearity='tanh') -> Tensor");
  m.def(
      "gru_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, "
      "Tensor? b_hh=None) -> Tensor");
  m.def(
      "lstm_cell(Tensor input, Tensor hx, Tensor cx, Tensor w_ih, Tensor w_hh, "
      "Tensor? b_ih=None, Tensor? b_hh=None) -> (Tensor, Tensor)");

  // For explain: why the operator that was called last on this thread ran as the composition, else
  // what kernels have against this tensor; "" where there is nothing.
  m.def("take_obstacle(Tensor? operand=None) -> str", &take_obstacle);

  // Facts about the library: the CPU instruction set in use, those built (narrowest first), and
  // whether FASTACT_DISABLE=1 sends every call to ATen.
  m.def("instruction_set() -> str", [] { return std::string(kernels().name); });
  m.def("instruction_sets() -> str[]", &built_instruction_sets);
  m.def("enabled() -> bool", &enabled);

  // The output block cache (fastact.memory); the statistics in the order of MemoryStats.
  m.def("memory_stats() -> int[]", [] {
    const MemoryStats s = memory_stats();
    return std::vector<int64_t>{s.cached_bytes, s.cached_blocks, s.in_use_bytes,
                                s.hits,         s.misses,        s.limit_bytes};
  });
  m.def("memory_empty_cache() -> ()", &memory_empty_cache);
  m.def("memory_set_limit(int bytes) -> ()", &memory_set_limit);
  m.def("memory_enable(bool enabled) -> ()", &memory_enable);
}

}  // namespace fastact
