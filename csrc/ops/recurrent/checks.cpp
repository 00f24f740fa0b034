// What recurrent operators accept.
#include <ATen/TensorSubclassLikeUtils.h>

#include "core/activation.h"
#include "cpu/dispatch.h"
#include "ops/recurrent/recurrent.h"

namespace fastact {
namespace {

void check_strided(const OperatorName& op, const char* name, const Tensor& t) {
  check_defined(op, name, t);
  TORCH_CHECK(has_sizes(t), op, name, ": expected a strided tensor, got ",
              t.is_nested() ? "a nested one" : c10::str(t.layout()));
}

void check_operand(const OperatorName& op, const char* name, const Tensor& t, const Tensor& input,
                   const char* whose, c10::SymIntArrayRef sizes) {
  check_strided(op, name, t);
  check_like(op, name, t, "input", input);
  check_sizes(op, name, t, whose, sizes);
}

}  // namespace

const char* RecurrentCall::name() const {
  return mode == RecurrentMode::kLstm ? "lstm" : mode == RecurrentMode::kGru ? "gru" : "rnn";
}

int64_t RecurrentCall::gates() const {
  return mode == RecurrentMode::kLstm ? 4 : mode == RecurrentMode::kGru ? 3 : 1;
}

RecurrentMode mode_of(c10::string_view nonlinearity, const OperatorName& op) {
  TORCH_CHECK_VALUE(nonlinearity == "tanh" || nonlinearity == "relu", op,
                    "nonlinearity: expected 'tanh' or 'relu', got '", nonlinearity, "'");
  return nonlinearity == "tanh" ? RecurrentMode::kTanh : RecurrentMode::kRelu;
}

RecurrentSizes check_recurrent(const OperatorName& op, const RecurrentCall& call) {
  const Tensor& input = call.input;
  check_strided(op, "input", input);
  TORCH_CHECK(input.dim() == 3, op, "input: expected 3 dimensions [T, B, I], got ", input.dim());
  TORCH_CHECK(TORCH_GUARD_OR_TRUE(input.sym_size(0).sym_gt(0)), op,
              "input: expected at least one step, got shape ", input.sym_sizes());
  const auto size = static_cast<int64_t>(call.weights.size());
  const int64_t plain = call.has_biases ? 4 : 2;
  const int64_t directions = call.directions();
  TORCH_CHECK(size >= plain * directions, op, "weights: expected ", plain, " or more of each of ",
              directions, directions == 1 ? " direction" : " directions", " and layer, got ", size,
              " tensors");
  for (const Tensor& w : call.weights.slice(0, 2)) {
    check_strided(op, "weights", w);
    TORCH_CHECK(w.dim() == 2, op, "weights: expected w_ih and w_hh of 2 dimensions, got ", w.dim());
  }
  const int64_t gates = call.gates();
  const c10::SymInt rows = call.weights[1].sym_size(0);
  TORCH_CHECK(TORCH_GUARD_OR_TRUE((rows % gates).sym_eq(0)), op, "weights: expected w_hh of ",
              gates, " * H rows, got shape ", call.weights[1].sym_sizes());
  RecurrentSizes s;
  s.steps = input.sym_size(0);
  s.batch = input.sym_size(1);
  s.input = input.sym_size(2);
  s.hidden = rows / gates;
  s.state = call.weights[1].sym_size(1);
  s.projects = call.is_lstm() && !TORCH_GUARD_OR_TRUE(s.state.sym_eq(s.hidden));
  s.directions = directions;
  s.weights_each = plain + s.projects;
  TORCH_CHECK(size % (s.weights_each * directions) == 0, op, "weights: expected ", s.weights_each,
              " of each layer and direction, ", directions, " of them, got ", size, " tensors");
  s.layers = size / (s.weights_each * directions);
  const c10::SymInt gate_rows = s.hidden * gates;
  for (int64_t layer = 0; layer < s.layers; ++layer) {
    const c10::SymInt below = layer ? s.state * directions : s.input;
    for (int64_t direction = 0; direction < directions; ++direction) {
      const DirectionWeights w = weights_of(call, s, layer, direction);
      check_operand(op, "weights", w.w_ih, input, "w_ih", {gate_rows, below});
      check_operand(op, "weights", w.w_hh, input, "w_hh", {gate_rows, s.state});
      if (call.has_biases) {
        check_operand(op, "weights", w.b_ih, input, "b_ih", {gate_rows});
        check_operand(op, "weights", w.b_hh, input, "b_hh", {gate_rows});
      }
      if (s.projects) {
        check_operand(op, "weights", w.w_hr, input, "w_hr", {s.state, s.hidden});
      }
    }
  }
  const c10::SymInt states(s.layers * directions);
  check_operand(op, "hx", call.hx, input, "the first state", {states, s.batch, s.state});
  if (call.is_lstm()) {
    check_operand(op, "cx", call.cx, input, "the first cell state", {states, s.batch, s.hidden});
  }
  if (is_defined(call.lengths)) {
    const Tensor& lengths = *call.lengths;
    check_strided(op, "lengths", lengths);
    TORCH_CHECK(lengths.scalar_type() == at::kLong, op, "lengths: expected int64, got ",
                lengths.scalar_type());
    TORCH_CHECK(lengths.is_cpu() || lengths.is_meta(), op,
                "lengths: expected a tensor on the CPU, got one on ", lengths.device());
    check_sizes(op, "lengths", lengths, "the batch", {s.batch});
  }
  if (is_defined(call.dropout_noise)) {
    check_operand(op, "dropout_noise", *call.dropout_noise, input, "the inputs of upper layers",
                  {c10::SymInt(s.layers - 1), s.steps, s.batch, s.state * directions});
  }
  return s;
}

void check_length_values(const OperatorName& op, const RecurrentCall& call) {
  if (!is_defined(call.lengths) || !call.lengths->is_cpu() ||
      at::isTensorSubclassLike(*call.lengths)) {
    return;
  }
  const Tensor& lengths = *call.lengths;
  const int64_t steps = call.input.size(0);
  const int64_t* first = lengths.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < lengths.size(0); ++i) {
    const int64_t length = first[i * lengths.stride(0)];
    TORCH_CHECK(length >= 0 && length <= steps, op, "lengths: expected numbers from 0 to ", steps,
                ", got ", length);
  }
}

RecurrentSizes check_recurrent_backward(const OperatorName& op, const RecurrentCall& call,
                                        const RecurrentOutputGradients& grads,
                                        const RecurrentMask& mask) {
  const RecurrentSizes s = check_recurrent(op, call);
  const c10::SymInt states(s.layers * s.directions);
  const auto fits = [&](const char* name, const Tensor& grad, const char* whose,
                        c10::SymIntArrayRef sizes) {
    if (grad.defined() && !is_stand_in(grad)) {
      check_operand(op, name, grad, call.input, whose, sizes);
    }
  };
  fits("grad_output", grads.output, "the output", {s.steps, s.batch, s.state * s.directions});
  fits("grad_hy", grads.hy, "hx", {states, s.batch, s.state});
  fits("grad_cy", grads.cy, "cx", {states, s.batch, s.hidden});
  const std::size_t expected = call.weights.size() + (call.is_lstm() ? 3 : 2);
  TORCH_CHECK(mask.size() == expected, op, "mask: expected ", expected, " elements, got ",
              mask.size());
  return s;
}

DirectionWeights weights_of(const RecurrentCall& call, const RecurrentSizes& sizes, int64_t layer,
                            int64_t direction) {
  const at::TensorList own = call.weights.slice(
      (layer * sizes.directions + direction) * sizes.weights_each, sizes.weights_each);
  DirectionWeights w{own[0], own[1], {}, {}, {}};
  if (call.has_biases) {
    w.b_ih = own[2];
    w.b_hh = own[3];
  }
  if (sizes.projects) {
    w.w_hr = own.back();
  }
  return w;
}

}  // namespace fastact
