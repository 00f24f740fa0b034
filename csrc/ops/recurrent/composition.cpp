// Recurrent layers and their gradients of ATen operators, a step at a time.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "ops/recurrent/recurrent.h"

namespace fastact {
namespace {

using Tensors = std::vector<Tensor>;

// [B, 1] for each step, true where a sequence has not ended; empty where all are whole.
Tensors running_steps(const RecurrentCall& call, int64_t steps) {
  if (!is_defined(call.lengths)) {
    return {};
  }
  const Tensor lengths = call.lengths->to(call.input.device());
  const Tensor step = at::arange(steps, lengths.options()).unsqueeze(1);
  return step.lt(lengths.unsqueeze(0)).unsqueeze(-1).unbind(0);
}

Tensor masked(const Tensors& running, int64_t step, const Tensor& t) {
  return running.empty() ? t : at::where(running[step], t, at::zeros_like(t));
}

// What one step of one direction formed, for its gradient.
struct Step {
  Tensors gates;  // activated; GRU: and W_hn h + b_hn as the fourth
  Tensor h_before;
  Tensor c_before;  // of an LSTM, as c
  Tensor c;
  Tensor h;  // the new one; of an LSTM that projects, before that
};

// A layer in one direction, in the order of the sequence.
struct Direction {
  const RecurrentCall& call;
  DirectionWeights w;
  bool reverse;
  Tensors running;
  Tensor x;  // [T, B, I]
  std::vector<Step> steps;

  // The steps in the order in which they are computed.
  template <class F>
  void each_step(int64_t count, bool backward, const F& f) const {
    for (int64_t i = 0; i < count; ++i) {
      f(reverse != backward ? count - 1 - i : i);
    }
  }

  Step cell(const Tensor& from_x, const Tensor& h, const Tensor& c) const {
    const Tensor from_h = at::linear(h, w.w_hh, w.b_hh);
    switch (call.mode) {
      case RecurrentMode::kTanh:
        return {{}, h, {}, {}, at::tanh(from_x + from_h)};
      case RecurrentMode::kRelu:
        return {{}, h, {}, {}, at::relu(from_x + from_h)};
      case RecurrentMode::kGru: {
        const Tensors a = from_x.chunk(3, -1);
        const Tensors b = from_h.chunk(3, -1);
        const Tensor r = at::sigmoid(a[0] + b[0]);
        const Tensor z = at::sigmoid(a[1] + b[1]);
        const Tensor n = at::tanh(a[2] + r * b[2]);
        return {{r, z, n, b[2]}, h, {}, {}, n + z * (h - n)};
      }
      case RecurrentMode::kLstm: {
        const Tensors sums = (from_x + from_h).chunk(4, -1);
        const Tensor i = at::sigmoid(sums[0]);
        const Tensor f = at::sigmoid(sums[1]);
        const Tensor g = at::tanh(sums[2]);
        const Tensor o = at::sigmoid(sums[3]);
        const Tensor next = f * c + i * g;
        return {{i, f, g, o}, h, c, next, o * at::tanh(next)};
      }
    }
    TORCH_INTERNAL_ASSERT(false);
  }

  // y of all steps; h and c become the last ones.
  Tensor forward(Tensor& h, Tensor& c, bool keep) {
    const Tensors from_x = at::linear(x, w.w_ih, w.b_ih).unbind(0);
    const auto count = static_cast<int64_t>(from_x.size());
    Tensors outputs(count);
    steps.resize(keep ? count : 0);
    each_step(count, /*backward=*/false, [&](int64_t t) {
      Step step = cell(from_x[t], h, c);
      const Tensor next = w.w_hr.defined() ? at::linear(step.h, w.w_hr) : step.h;
      outputs[t] = masked(running, t, next);
      h = running.empty() ? next : at::where(running[t], next, h);
      if (c.defined()) {
        c = running.empty() ? step.c : at::where(running[t], step.c, c);
      }
      if (keep) {
        steps[t] = std::move(step);
      }
    });
    return at::stack(outputs);
  }

  // The gradients of the gates before their activation, for x and for h; dh is that of the new h
  // and becomes what else the one before gets, dc likewise.
  std::pair<Tensor, Tensor> cell_backward(const Step& s, Tensor& dh, Tensor& dc) const {
    const auto sigmoid_gradient = [](const Tensor& y) { return y * (1 - y); };
    const auto tanh_gradient = [](const Tensor& y) { return 1 - y * y; };
    switch (call.mode) {
      case RecurrentMode::kTanh:
      case RecurrentMode::kRelu: {
        const Tensor sum = call.mode == RecurrentMode::kTanh ? dh * tanh_gradient(s.h)
                                                             : at::threshold_backward(dh, s.h, 0);
        dh = Tensor();
        return {sum, sum};
      }
      case RecurrentMode::kGru: {
        const Tensor &r = s.gates[0], &z = s.gates[1], &n = s.gates[2];
        const Tensor dn = dh * (1 - z) * tanh_gradient(n);
        const Tensor dr = dn * s.gates[3] * sigmoid_gradient(r);
        const Tensor dz = dh * (s.h_before - n) * sigmoid_gradient(z);
        dh = dh * z;
        return {at::cat({dr, dz, dn}, -1), at::cat({dr, dz, dn * r}, -1)};
      }
      case RecurrentMode::kLstm: {
        const Tensor &i = s.gates[0], &f = s.gates[1], &g = s.gates[2], &o = s.gates[3];
        const Tensor t = at::tanh(s.c);
        dc = dc + dh * o * tanh_gradient(t);
        const Tensor sums =
            at::cat({dc * g * sigmoid_gradient(i), dc * s.c_before * sigmoid_gradient(f),
                     dc * i * tanh_gradient(g), dh * t * sigmoid_gradient(o)},
                    -1);
        dc = dc * f;
        dh = Tensor();
        return {sums, sums};
      }
    }
    TORCH_INTERNAL_ASSERT(false);
  }

  // dy of all steps; dh and dc of the last states, which become those of the first ones.
  Tensor backward(const Tensor& dy, Tensor& dh, Tensor& dc, DirectionWeights& dw) const {
    const Tensors dys = dy.unbind(0);
    const auto count = static_cast<int64_t>(steps.size());
    Tensors for_x(count);
    Tensors for_h(count);
    Tensors before(count);
    each_step(count, /*backward=*/true, [&](int64_t t) {
      const Step& s = steps[t];
      const Tensor whole = masked(running, t, dh + dys[t]);
      Tensor own = whole;
      if (w.w_hr.defined()) {
        own = at::matmul(whole, w.w_hr);
        const Tensor dw_hr = at::matmul(whole.t(), s.h);
        dw.w_hr = dw.w_hr.defined() ? dw.w_hr + dw_hr : dw_hr;
      }
      Tensor own_c = dc.defined() ? masked(running, t, dc) : dc;
      std::tie(for_x[t], for_h[t]) = cell_backward(s, own, own_c);
      const Tensor product = at::matmul(for_h[t], w.w_hh);
      const Tensor next = own.defined() ? product + own : product;
      dh = running.empty() ? next : at::where(running[t], next, dh);
      if (dc.defined()) {
        dc = running.empty() ? own_c : at::where(running[t], own_c, dc);
      }
      before[t] = s.h_before;
    });
    const Tensor all_for_x = at::stack(for_x);
    const auto summed = [](const Tensor& d, const Tensor& a) {
      return at::matmul(d.flatten(0, 1).t(), a.flatten(0, 1));
    };
    const Tensor all_for_h = at::stack(for_h);
    dw.w_ih = summed(all_for_x, x);
    dw.w_hh = summed(all_for_h, at::stack(before));
    if (w.b_ih.defined()) {
      dw.b_ih = all_for_x.sum(at::IntArrayRef{0, 1});
      dw.b_hh = all_for_h.sum(at::IntArrayRef{0, 1});
    }
    return at::matmul(all_for_x, w.w_ih);
  }
};

// All layers, each direction of one after the other.
struct Stack {
  const RecurrentCall& call;
  RecurrentSizes sizes;
  std::vector<Direction> directions;

  Stack(const RecurrentCall& call, RecurrentSizes sizes) : call(call), sizes(std::move(sizes)) {}

  RecurrentResults forward(bool keep) {
    const Tensors running = running_steps(call, call.input.size(0));
    const Tensors first_h = call.hx.unbind(0);
    const Tensors first_c = call.is_lstm() ? call.cx.unbind(0) : Tensors(first_h.size());
    Tensors last_h = first_h;
    Tensors last_c = first_c;
    Tensor x = call.input;
    for (int64_t layer = 0; layer < sizes.layers; ++layer) {
      if (layer && is_defined(call.dropout_noise)) {
        x = x * call.dropout_noise->select(0, layer - 1);
      }
      Tensors outputs;
      for (int64_t i = 0; i < sizes.directions; ++i) {
        Direction direction{call, weights_of(call, sizes, layer, i), i == 1, running, x, {}};
        const std::size_t at = layer * sizes.directions + i;
        outputs.push_back(direction.forward(last_h[at], last_c[at], keep));
        if (keep) {
          directions.push_back(std::move(direction));
        }
      }
      x = outputs.size() == 1 ? outputs[0] : at::cat(outputs, -1);
    }
    return {x, at::stack(last_h), call.is_lstm() ? at::stack(last_c) : Tensor(), {}};
  }

  RecurrentGradients backward(const RecurrentOutputGradients& grads) {
    const auto given = [](const Tensor& grad, const auto& make) {
      return grad.defined() ? grad : make();
    };
    const RecurrentResults results = forward(/*keep=*/true);
    Tensors dh = given(grads.hy, [&] { return at::zeros_like(results.hy); }).unbind(0);
    Tensors dc = call.is_lstm()
                     ? given(grads.cy, [&] { return at::zeros_like(results.cy); }).unbind(0)
                     : Tensors(dh.size());
    Tensor dy = given(grads.output, [&] { return at::zeros_like(results.output); });
    Tensors weights(call.weights.size());
    for (int64_t layer = sizes.layers; layer-- > 0;) {
      const Tensors dys = dy.chunk(sizes.directions, -1);
      Tensor dx;
      for (int64_t i = 0; i < sizes.directions; ++i) {
        const int64_t at = layer * sizes.directions + i;
        DirectionWeights dw;
        const Tensor own = directions[at].backward(dys[i], dh[at], dc[at], dw);
        dx = dx.defined() ? dx + own : own;
        Tensor* to = &weights[at * sizes.weights_each];
        *to++ = dw.w_ih;
        *to++ = dw.w_hh;
        if (call.has_biases) {
          *to++ = dw.b_ih;
          *to++ = dw.b_hh;
        }
        if (sizes.projects) {
          *to++ = dw.w_hr;
        }
      }
      dy = layer && is_defined(call.dropout_noise) ? dx * call.dropout_noise->select(0, layer - 1)
                                                   : dx;
    }
    return {dy, at::stack(dh), call.is_lstm() ? at::stack(dc) : Tensor(), std::move(weights)};
  }
};

}  // namespace

RecurrentResults compose_recurrent(const RecurrentCall& call) {
  const OperatorName op(call.name());
  Stack stack(call, check_recurrent(op, call));
  check_length_values(op, call);
  return stack.forward(/*keep=*/false);
}

RecurrentResults compose_recurrent_training(const RecurrentCall& call) {
  RecurrentResults results = compose_recurrent(call);
  results.reserve = at::empty({0}, call.input.options().dtype(reserve_dtype(call)));
  return results;
}

RecurrentGradients compose_recurrent_backward(const RecurrentCall& call,
                                              const RecurrentOutputGradients& grads,
                                              const RecurrentMask& mask) {
  const OperatorName op(call.name(), "_backward");
  Stack stack(call, check_recurrent_backward(op, call, grads, mask));
  check_length_values(op, call);
  RecurrentGradients all = stack.backward(grads);
  keep_wanted(call, mask, all);
  return all;
}

void keep_wanted(const RecurrentCall& call, const RecurrentMask& mask, RecurrentGradients& all) {
  std::size_t at = 0;
  const auto keep = [&](Tensor& gradient) {
    if (!mask[at++]) {
      gradient = Tensor();
    }
  };
  keep(all.input);
  keep(all.hx);
  if (call.is_lstm()) {
    keep(all.cx);
  }
  for (Tensor& gradient : all.weights) {
    keep(gradient);
  }
}

}  // namespace fastact
