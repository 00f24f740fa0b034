// The recurrent operators as kernels of one call: what tells rnn, gru and lstm apart, so that a
// backend writes RecurrentResults f(call, training) and RecurrentGradients f(call, grads, reserve,
// mask) alone.
#pragma once

#include <ATen/ops/empty.h>

#include "ops/recurrent/recurrent.h"

namespace fastact {

struct Rnn {
  static constexpr const auto& op = rnn_op;
  static constexpr const auto& training_op = rnn_training_op;
  static constexpr const auto& backward_op = rnn_backward_op;

  static RecurrentCall call(const Tensor& input, const Tensor& hx, at::TensorList weights,
                            const OptionalTensor& lengths, const OptionalTensor& dropout_noise,
                            bool has_biases, bool bidirectional, c10::string_view nonlinearity) {
    return {mode_of(nonlinearity, "rnn"),
            input,
            hx,
            value_or_undefined({}),
            weights,
            lengths,
            dropout_noise,
            has_biases,
            bidirectional};
  }
  static RnnResults results(RecurrentResults&& r) { return {std::move(r.output), std::move(r.hy)}; }
  static RnnTrainingResults training_results(RecurrentResults&& r) {
    return {std::move(r.output), std::move(r.hy), std::move(r.reserve)};
  }
  static RecurrentResults taken(RnnTrainingResults&& r) {
    return {std::get<0>(r), std::get<1>(r), {}, std::get<2>(r)};
  }
};

struct Gru : Rnn {
  static constexpr const auto& op = gru_op;
  static constexpr const auto& training_op = gru_training_op;
  static constexpr const auto& backward_op = gru_backward_op;

  static RecurrentCall call(const Tensor& input, const Tensor& hx, at::TensorList weights,
                            const OptionalTensor& lengths, const OptionalTensor& dropout_noise,
                            bool has_biases, bool bidirectional) {
    return {RecurrentMode::kGru, input,      hx,           value_or_undefined({}), weights, lengths,
            dropout_noise,       has_biases, bidirectional};
  }
};

struct Lstm {
  static constexpr const auto& op = lstm_op;
  static constexpr const auto& training_op = lstm_training_op;
  static constexpr const auto& backward_op = lstm_backward_op;

  static RecurrentCall call(const Tensor& input, const Tensor& hx, const Tensor& cx,
                            at::TensorList weights, const OptionalTensor& lengths,
                            const OptionalTensor& dropout_noise, bool has_biases,
                            bool bidirectional) {
    return {RecurrentMode::kLstm, input,      hx,           cx, weights, lengths,
            dropout_noise,        has_biases, bidirectional};
  }
  static LstmResults results(RecurrentResults&& r) {
    return {std::move(r.output), std::move(r.hy), std::move(r.cy)};
  }
  static LstmTrainingResults training_results(RecurrentResults&& r) {
    return {std::move(r.output), std::move(r.hy), std::move(r.cy), std::move(r.reserve)};
  }
  static RecurrentResults taken(LstmTrainingResults&& r) {
    return {std::get<0>(r), std::get<1>(r), std::get<2>(r), std::get<3>(r)};
  }
};

// ---- forward ------------------------------------------------------------------------------------

// By kResults(call, training).
template <class F, class Schema>
struct ForwardKernel;
template <class F, class Results, class... A>
struct ForwardKernel<F, Results(A...)> {
  template <auto kResults>
  static Results inference(A... a) {
    return F::results(kResults(F::call(a...), /*training=*/false));
  }
  template <auto kResults>
  static Results training(A... a) {
    return F::training_results(kResults(F::call(a...), /*training=*/true));
  }
};

// ---- backward -----------------------------------------------------------------------------------

// Gradients as an operator returns them: an empty tensor where none was asked for.
inline Tensor or_empty(const Tensor& gradient, const Tensor& input) {
  return gradient.defined() ? gradient : at::empty({0}, input.options());
}
inline RnnGradients rnn_gradients(RecurrentGradients&& g, const Tensor& input) {
  for (Tensor& w : g.weights) {
    w = or_empty(w, input);
  }
  return {or_empty(g.input, input), or_empty(g.hx, input), std::move(g.weights)};
}
inline LstmGradients lstm_gradients(RecurrentGradients&& g, const Tensor& input) {
  const Tensor cx = or_empty(g.cx, input);
  auto [dinput, dhx, dweights] = rnn_gradients(std::move(g), input);
  return {dinput, dhx, cx, std::move(dweights)};
}

// rnn_backward and gru_backward, whose arguments differ by the nonlinearity N.
template <class F, class... N>
struct RnnBackwardKernel {
  template <class Run>
  static RnnGradients run(const Run& run, const OptionalTensor& grad_output,
                          const OptionalTensor& grad_hy, const Tensor& input, const Tensor& hx,
                          at::TensorList weights, const OptionalTensor& lengths,
                          const OptionalTensor& dropout_noise, bool has_biases, bool bidirectional,
                          N... nonlinearity) {
    const RecurrentCall call = F::call(input, hx, weights, lengths, dropout_noise, has_biases,
                                       bidirectional, nonlinearity...);
    return run(call, RecurrentOutputGradients{value_or_undefined(grad_output),
                                              value_or_undefined(grad_hy), call.cx});
  }

  template <auto kGradients>
  static RnnGradients kernel(const OptionalTensor& grad_output, const OptionalTensor& grad_hy,
                             const Tensor& input, const Tensor& hx, at::TensorList weights,
                             const OptionalTensor& lengths, const OptionalTensor& dropout_noise,
                             const Tensor& reserve, bool has_biases, bool bidirectional,
                             N... nonlinearity, RecurrentMask mask) {
    const auto compute = [&](const RecurrentCall& call, const RecurrentOutputGradients& grads) {
      return rnn_gradients(kGradients(call, grads, reserve, mask), input);
    };
    return run(compute, grad_output, grad_hy, input, hx, weights, lengths, dropout_noise,
               has_biases, bidirectional, nonlinearity...);
  }
};

struct LstmBackwardKernel {
  template <auto kGradients>
  static LstmGradients kernel(const OptionalTensor& grad_output, const OptionalTensor& grad_hy,
                              const OptionalTensor& grad_cy, const Tensor& input, const Tensor& hx,
                              const Tensor& cx, at::TensorList weights,
                              const OptionalTensor& lengths, const OptionalTensor& dropout_noise,
                              const Tensor& reserve, bool has_biases, bool bidirectional,
                              RecurrentMask mask) {
    const RecurrentCall call =
        Lstm::call(input, hx, cx, weights, lengths, dropout_noise, has_biases, bidirectional);
    const RecurrentOutputGradients grads{value_or_undefined(grad_output),
                                         value_or_undefined(grad_hy), value_or_undefined(grad_cy)};
    return lstm_gradients(kGradients(call, grads, reserve, mask), input);
  }
};

}  // namespace fastact
