// Recurrent layers: autograd, fake kernels and registration.
#include <ATen/ops/empty.h>

#include "core/activation.h"
#include "core/node.h"
#include "core/registration.h"
#include "cpu/dispatch.h"
#include "ops/recurrent/kernels.h"

namespace fastact {
namespace {

// ---- autograd -----------------------------------------------------------------------------------

template <class F>
struct RecurrentNode final : OperatorNode<RecurrentNode<F>> {
  RecurrentMode mode = RecurrentMode::kTanh;
  bool has_biases = true;
  bool bidirectional = false;
  SavedVariable input;
  SavedVariable hx;
  SavedVariable cx;
  SavedVariable lengths;
  SavedVariable dropout_noise;
  SavedVariable reserve;
  std::vector<SavedVariable> weights;

  std::string name() const override { return std::string("fastact::") + F::op.name(); }

  template <class Visit>
  void each_saved(const Visit& f) {
    for (SavedVariable* variable : {&input, &hx, &cx, &lengths, &dropout_noise, &reserve}) {
      f(*variable, /*is_output=*/false);
    }
    for (SavedVariable& variable : weights) {
      f(variable, /*is_output=*/false);
    }
  }
  template <class Visit>
  void each_attribute(const Visit& f) {
    int64_t index = static_cast<int64_t>(mode);
    f(index);
    f(has_biases);
    f(bidirectional);
  }

  void backward(const variable_list& grads, variable_list& result) {
    constexpr bool kHasCell = std::is_same_v<F, Lstm>;
    // The edges are those of input, hx, cx and weights; only an LSTM's operator has a cx.
    RecurrentMask mask;
    for (std::size_t i = 0; i < result.size(); ++i) {
      if (i != 2 || kHasCell) {
        mask.push_back(this->task_should_compute_output(i));
      }
    }
    std::vector<Tensor> w;
    w.reserve(weights.size());
    for (SavedVariable& weight : weights) {
      w.push_back(weight.unpack());
    }
    const auto grad = [&](std::size_t i) { return none_if_undefined(grads[i]); };
    const auto put = [&](Tensor& gradient, std::size_t edge) {
      if (this->task_should_compute_output(edge)) {
        result[edge] = std::move(gradient);
      }
    };
    std::vector<Tensor> dw;
    if constexpr (kHasCell) {
      auto gradients = F::backward_op.call(grad(0), grad(1), grad(2), input.unpack(), hx.unpack(),
                                           cx.unpack(), w, none_if_undefined(lengths.unpack()),
                                           none_if_undefined(dropout_noise.unpack()),
                                           reserve.unpack(), has_biases, bidirectional, mask);
      put(std::get<0>(gradients), 0);
      put(std::get<1>(gradients), 1);
      put(std::get<2>(gradients), 2);
      dw = std::move(std::get<3>(gradients));
    } else {
      const auto call = [&](auto... nonlinearity) {
        return F::backward_op.call(grad(0), grad(1), input.unpack(), hx.unpack(), w,
                                   none_if_undefined(lengths.unpack()),
                                   none_if_undefined(dropout_noise.unpack()), reserve.unpack(),
                                   has_biases, bidirectional, nonlinearity..., mask);
      };
      RnnGradients gradients;
      if constexpr (std::is_same_v<F, Rnn>) {
        gradients = call(c10::string_view(mode == RecurrentMode::kTanh ? "tanh" : "relu"));
      } else {
        gradients = call();
      }
      put(std::get<0>(gradients), 0);
      put(std::get<1>(gradients), 1);
      dw = std::move(std::get<2>(gradients));
    }
    for (std::size_t i = 0; i < dw.size(); ++i) {
      put(dw[i], 3 + i);
    }
  }
};

bool any_dual(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return is_dual(t); });
}
bool any_dual(const RecurrentCall& call) {
  return is_dual(call.input) || is_dual(call.hx) || is_dual(call.cx) || any_dual(call.weights) ||
         is_dual(value_or_undefined(call.dropout_noise));
}

bool has_cuda_kernels(const RecurrentCall& call) {
#ifdef FASTACT_CUDA
  return call.input.is_cuda() && !is_defined(call.lengths);
#else
  static_cast<void>(call);
  return false;
#endif
}

// A nested or an undefined tensor has no sizes, of which the kernels' checks tell; other devices
// keep what the composition's own nodes keep, and so do sequences of several lengths on CUDA.
bool differentiated_here(const RecurrentCall& call) {
  return enabled() && has_sizes(call.input) && is_kernel_dtype(call.input.scalar_type()) &&
         (call.input.is_cpu() || call.input.is_meta() || has_cuda_kernels(call)) &&
         !compute_requires_grad(value_or_undefined(call.dropout_noise));
}

template <class F, class Schema>
struct Forward;

template <class F, class Results, class... A>
struct Forward<F, Results(A...)> {
  static Results autograd(c10::DispatchKeySet keys, A... a) {
    const RecurrentCall call = F::call(a...);
    const bool needs_grad = compute_requires_grad(call.input, call.hx, call.cx, call.weights,
                                                  value_or_undefined(call.dropout_noise));
    if (any_dual(call) || (needs_grad && !differentiated_here(call))) {
      return F::results(compose_recurrent(call));
    }
    const auto node = make_node<RecurrentNode<F>>(call.input, call.hx, call.cx, call.weights);
    if (!node) {
      at::AutoDispatchBelowADInplaceOrView guard;
      return F::op.redispatch(keys & c10::after_autograd_keyset, a...);
    }
    RecurrentResults r = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return F::taken(F::training_op.redispatch(keys & c10::after_autograd_keyset, a...));
    }();
    set_history(r.output, node);
    set_history(r.hy, node);
    if (r.cy.defined()) {
      set_history(r.cy, node);
    }
    const auto keep = [](const Tensor& t) { return SavedVariable(t, /*is_output=*/false); };
    node->mode = call.mode;
    node->has_biases = call.has_biases;
    node->bidirectional = call.bidirectional;
    node->input = keep(call.input);
    node->hx = keep(call.hx);
    node->cx = keep(call.cx);
    node->lengths = keep(value_or_undefined(call.lengths));
    node->dropout_noise = keep(value_or_undefined(call.dropout_noise));
    node->reserve = keep(r.reserve);
    node->weights.reserve(call.weights.size());
    for (const Tensor& weight : call.weights) {
      node->weights.push_back(keep(alias_of(weight)));
    }
    node_is_complete(node);
    return F::results(std::move(r));
  }

  static Results fake(A... a) {
    RecurrentResults r = outputs(F::call(a...));
    return F::results(std::move(r));
  }
  static Results composed(A... a) { return F::results(compose_recurrent(F::call(a...))); }

  static RecurrentResults outputs(const RecurrentCall& call) {
    const RecurrentSizes s = check_recurrent(call.name(), call);
    const auto like = [&](c10::SymIntArrayRef sizes, at::ScalarType dtype) {
      return at::empty_symint(sizes, call.input.options().dtype(dtype));
    };
    const at::ScalarType dtype = call.input.scalar_type();
    return {like({s.steps, s.batch, s.state * s.directions}, dtype),
            like(call.hx.sym_sizes(), dtype),
            call.is_lstm() ? like(call.cx.sym_sizes(), dtype) : Tensor(),
            like({reserve_elements(call, s)}, reserve_dtype(call))};
  }
};

template <class F, class Schema>
struct Training;

template <class F, class Results, class... A>
struct Training<F, Results(A...)> {
  // The forward operator's own kernel runs it below autograd; here come the outer levels of
  // functorch's transforms, whose backward composes.
  static Results autograd(c10::DispatchKeySet keys, A... a) {
    const RecurrentCall call = F::call(a...);
    if (any_dual(call) || compute_requires_grad(call.input, call.hx, call.cx, call.weights)) {
      return F::training_results(compose_recurrent_training(call));
    }
    at::AutoDispatchBelowADInplaceOrView guard;
    return F::training_op.redispatch(keys & c10::after_autograd_keyset, a...);
  }
  static Results fake(A... a) {
    RecurrentResults r = Forward<F, Results(A...)>::outputs(F::call(a...));
    return F::training_results(std::move(r));
  }
  static Results composed(A... a) {
    return F::training_results(compose_recurrent_training(F::call(a...)));
  }
};

// ---- backward -----------------------------------------------------------------------------------

RecurrentGradients composed_gradients(const RecurrentCall& call,
                                      const RecurrentOutputGradients& grads, const Tensor&,
                                      const RecurrentMask& mask) {
  return compose_recurrent_backward(call, grads, mask);
}

RecurrentGradients fake_gradients(const RecurrentCall& call, const RecurrentOutputGradients& grads,
                                  const Tensor&, const RecurrentMask& mask) {
  check_recurrent_backward({call.name(), "_backward"}, call, grads, mask);
  std::size_t at = 0;
  const auto like = [&](const Tensor& t) {
    return mask[at++] ? at::empty_symint(t.sym_sizes(), t.options()) : Tensor();
  };
  RecurrentGradients result{like(call.input), like(call.hx), {}, {}};
  if (call.is_lstm()) {
    result.cx = like(call.cx);
  }
  for (const Tensor& w : call.weights) {
    result.weights.push_back(like(w));
  }
  return result;
}

// Whether the gradients must themselves be differentiable.
bool differentiated(const RecurrentCall& call, const RecurrentOutputGradients& grads) {
  return any_dual(call) || is_dual(grads.output) || is_dual(grads.hy) || is_dual(grads.cy) ||
         compute_requires_grad(call.input, call.hx, call.cx, call.weights, grads.output, grads.hy,
                               grads.cy, value_or_undefined(call.dropout_noise));
}

template <class F, class... N>
struct RnnBackward : RnnBackwardKernel<F, N...> {
  static RnnGradients autograd(c10::DispatchKeySet keys, const OptionalTensor& grad_output,
                               const OptionalTensor& grad_hy, const Tensor& input, const Tensor& hx,
                               at::TensorList weights, const OptionalTensor& lengths,
                               const OptionalTensor& dropout_noise, const Tensor& reserve,
                               bool has_biases, bool bidirectional, N... nonlinearity,
                               RecurrentMask mask) {
    const auto compose_or_redispatch = [&](const RecurrentCall& call,
                                           const RecurrentOutputGradients& grads) {
      if (differentiated(call, grads)) {
        return rnn_gradients(compose_recurrent_backward(call, grads, mask), input);
      }
      at::AutoDispatchBelowADInplaceOrView guard;
      return F::backward_op.redispatch(keys & c10::after_autograd_keyset, grad_output, grad_hy,
                                       input, hx, weights, lengths, dropout_noise, reserve,
                                       has_biases, bidirectional, nonlinearity..., mask);
    };
    return RnnBackward::run(compose_or_redispatch, grad_output, grad_hy, input, hx, weights,
                            lengths, dropout_noise, has_biases, bidirectional, nonlinearity...);
  }
};

struct LstmBackward : LstmBackwardKernel {
  static LstmGradients autograd(c10::DispatchKeySet keys, const OptionalTensor& grad_output,
                                const OptionalTensor& grad_hy, const OptionalTensor& grad_cy,
                                const Tensor& input, const Tensor& hx, const Tensor& cx,
                                at::TensorList weights, const OptionalTensor& lengths,
                                const OptionalTensor& dropout_noise, const Tensor& reserve,
                                bool has_biases, bool bidirectional, RecurrentMask mask) {
    const RecurrentCall call =
        Lstm::call(input, hx, cx, weights, lengths, dropout_noise, has_biases, bidirectional);
    const RecurrentOutputGradients grads{value_or_undefined(grad_output),
                                         value_or_undefined(grad_hy), value_or_undefined(grad_cy)};
    if (differentiated(call, grads)) {
      return lstm_gradients(compose_recurrent_backward(call, grads, mask), input);
    }
    at::AutoDispatchBelowADInplaceOrView guard;
    return lstm_backward_op.redispatch(keys & c10::after_autograd_keyset, grad_output, grad_hy,
                                       grad_cy, input, hx, cx, weights, lengths, dropout_noise,
                                       reserve, has_biases, bidirectional, mask);
  }
};

// ---- registration -------------------------------------------------------------------------------

template <class F, class Schema, class TrainingSchema>
struct Registrations {
  using Own = Forward<F, Schema>;
  using OwnTraining = Training<F, TrainingSchema>;
  const Registration forward{F::op, fastact::Autograd<&Own::autograd>{},
                             Cpu<&ForwardKernel<F, Schema>::template inference<&recurrent_cpu>>{},
                             Fake<&Own::fake>{}, Composed<&Own::composed>{}};
  const Registration training{
      F::training_op, fastact::Autograd<&OwnTraining::autograd>{},
      Cpu<&ForwardKernel<F, TrainingSchema>::template training<&recurrent_cpu>>{},
      Fake<&OwnTraining::fake>{}, Composed<&OwnTraining::composed>{}};
};
const Registrations<Rnn, RnnSchemaOf<RnnResults>, RnnSchemaOf<RnnTrainingResults>> register_rnn;
const Registrations<Gru, GruSchemaOf<RnnResults>, GruSchemaOf<RnnTrainingResults>> register_gru;
const Registrations<Lstm, LstmSchemaOf<LstmResults>, LstmSchemaOf<LstmTrainingResults>>
    register_lstm;

template <class Own>
Registration register_backward(const auto& op) {
  return {op, fastact::Autograd<&Own::autograd>{},
          Cpu<&Own::template kernel<&recurrent_backward_cpu>>{},
          Fake<&Own::template kernel<&fake_gradients>>{},
          Composed<&Own::template kernel<&composed_gradients>>{}};
}
const Registration register_rnn_backward =
    register_backward<RnnBackward<Rnn, c10::string_view>>(rnn_backward_op);
const Registration register_gru_backward = register_backward<RnnBackward<Gru>>(gru_backward_op);
const Registration register_lstm_backward = register_backward<LstmBackward>(lstm_backward_op);

}  // namespace
}  // namespace fastact
