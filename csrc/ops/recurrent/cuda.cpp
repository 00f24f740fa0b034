// Recurrent layers on CUDA devices: the inputs' part of all steps is one product; a step is a
// product of the state with W_hh and one kernel for the cell; in backward the gradients of weights
// and inputs are products over all steps.
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "cuda/operators.h"
#include "ops/recurrent/kernels.h"

namespace fastact {
namespace {

using Tensors = std::vector<Tensor>;

const void* data(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
void* memory(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

bool recurrent_covered(const RecurrentCall& call) {
  if (!covered<kDevice>(call.input, call.hx, call.dropout_noise)) {
    return false;
  }
  if (call.is_lstm() && !covered<kDevice>(call.input, call.cx)) {
    return false;
  }
  for (const Tensor& w : call.weights) {
    if (!covered<kDevice>(call.input, w)) {
      return false;
    }
  }
  return !is_defined(call.lengths) || not_covered("sequences of several lengths on CUDA");
}

// What a direction of a layer leaves for backward, contiguous; undefined where its cell has none.
struct Kept {
  Tensor h;            // [T, B, P]
  Tensor gates;        // [T, B, 4 H] of a GRU or LSTM: activated, as the kernels leave them
  Tensor c;            // [T, B, H] of an LSTM
  Tensor unprojected;  // [T, B, H] of an LSTM that projects
};

// A call whose sizes are known, and where what it keeps lies: in the reserve, whose size all
// backends share, so that fake tensors need not know the device; else in memory of its own.
class Layers {
 public:
  Layers(const RecurrentCall& call, const RecurrentSizes& sizes)
      : call_(call),
        sizes_(sizes),
        steps_(call.input.size(0)),
        batch_(call.input.size(1)),
        hidden_(sizes.hidden.guard_int(__FILE__, __LINE__)),
        state_(sizes.state.guard_int(__FILE__, __LINE__)) {}

  // All directions, layer by layer; of an empty `reserve` in memory of their own.
  std::vector<Kept> kept(const Tensor& reserve) const {
    Tensor numbers = reserve;
    if (reserve.defined()) {
      numbers = reserve.view(call_.input.scalar_type());
    }
    int64_t at = 0;
    const auto take = [&](bool there, int64_t columns) {
      if (!there) {
        return Tensor();
      }
      const int64_t count = steps_ * batch_ * columns;
      at += count;
      return numbers.defined()
                 ? numbers.narrow(0, at - count, count).view({steps_, batch_, columns})
                 : at::empty({steps_, batch_, columns}, call_.input.options());
    };
    const bool has_gates = call_.is_lstm() || call_.mode == RecurrentMode::kGru;
    std::vector<Kept> all;
    for (int64_t i = 0; i < sizes_.layers * sizes_.directions; ++i) {
      Kept kept;
      kept.h = take(true, state_);
      kept.gates = take(has_gates && reserve.defined(), 4 * hidden_);
      kept.c = take(call_.is_lstm(), hidden_);
      kept.unprojected = take(sizes_.projects, hidden_);
      all.push_back(std::move(kept));
    }
    return all;
  }

  RecurrentResults forward(const Tensor& reserve) const {
    const std::vector<Kept> all = kept(reserve);
    Tensors last_h;
    Tensors last_c;
    Tensor x = call_.input;
    for (int64_t layer = 0; layer < sizes_.layers; ++layer) {
      x = input_of(layer, x);
      for (int64_t i = 0; i < sizes_.directions; ++i) {
        run(layer, i, x, all[index(layer, i)]);
        const Kept& own = all[index(layer, i)];
        const int64_t last = i == 1 ? 0 : steps_ - 1;
        last_h.push_back(own.h[last]);
        if (call_.is_lstm()) {
          last_c.push_back(own.c[last]);
        }
      }
      x = output_of(layer, all);
    }
    // What is returned must not lie in the reserve: it may be written to.
    return {reserve.defined() && sizes_.directions == 1 ? x.clone() : x, at::stack(last_h),
            call_.is_lstm() ? at::stack(last_c) : Tensor(), reserve};
  }

  RecurrentGradients backward(const RecurrentOutputGradients& grads, const Tensor& reserve) const {
    const std::vector<Kept> all = kept(reserve);
    RecurrentGradients result;
    result.weights.resize(call_.weights.size());
    Tensors dhx(all.size());
    Tensors dcx(all.size());
    Tensor dy = grads.output;
    for (int64_t layer = sizes_.layers; layer-- > 0;) {
      const Tensor x = input_of(layer, layer ? output_of(layer - 1, all) : call_.input);
      Tensor dx;
      for (int64_t i = 0; i < sizes_.directions; ++i) {
        const int64_t at = index(layer, i);
        const Tensor own_dy =
            dy.defined() ? dy.narrow(-1, i * state_, state_).contiguous() : Tensor();
        const Tensor own =
            run_backward(layer, i, x, all[at], own_dy, grads.hy.defined() ? grads.hy[at] : Tensor(),
                         grads.cy.defined() ? grads.cy[at] : Tensor(), dhx[at], dcx[at],
                         &result.weights[at * sizes_.weights_each]);
        dx = dx.defined() ? at::add(dx, own) : own;
      }
      dy = layer && is_defined(call_.dropout_noise)
               ? at::mul(dx, call_.dropout_noise->select(0, layer - 1))
               : dx;
    }
    result.input = dy;
    result.hx = at::stack(dhx);
    if (call_.is_lstm()) {
      result.cx = at::stack(dcx);
    }
    return result;
  }

 private:
  int64_t index(int64_t layer, int64_t direction) const {
    return layer * sizes_.directions + direction;
  }
  bool is_tanh() const { return call_.mode == RecurrentMode::kTanh; }
  const RecurrentLaunches& launches() const {
    return *recurrent_launches[table_dtype(call_.input.scalar_type())];
  }

  // Of the output of the layer below.
  Tensor input_of(int64_t layer, const Tensor& below) const {
    return layer && is_defined(call_.dropout_noise)
               ? at::mul(below, call_.dropout_noise->select(0, layer - 1))
               : below;
  }
  Tensor output_of(int64_t layer, const std::vector<Kept>& all) const {
    return sizes_.directions == 1 ? all[index(layer, 0)].h
                                  : at::cat({all[index(layer, 0)].h, all[index(layer, 1)].h}, -1);
  }

  // f(step, the one before it or -1) in the order of the sequence.
  template <class F>
  void each_step(int64_t direction, bool backward, const F& f) const {
    for (int64_t i = 0; i < steps_; ++i) {
      const int64_t nth = backward ? steps_ - 1 - i : i;
      const int64_t t = direction == 1 ? steps_ - 1 - nth : nth;
      f(t, nth == 0 ? -1 : direction == 1 ? t + 1 : t - 1);
    }
  }

  void run(int64_t layer, int64_t direction, const Tensor& x, const Kept& own) const {
    const DirectionWeights w = weights_of(call_, sizes_, layer, direction);
    const Tensor from_x = at::linear(x, w.w_ih, w.b_ih).contiguous();
    const Tensor w_hh = w.w_hh.t();
    const Tensor first_h = call_.hx[index(layer, direction)].contiguous();
    const Tensor first_c =
        call_.is_lstm() ? call_.cx[index(layer, direction)].contiguous() : Tensor();
    Tensor from_h = at::empty({batch_, from_x.size(2)}, from_x.options());
    each_step(direction, /*backward=*/false, [&](int64_t t, int64_t before) {
      const Tensor h = before < 0 ? first_h : own.h[before];
      if (w.b_hh.defined()) {
        at::addmm_out(from_h, w.b_hh, h, w_hh);
      } else {
        at::mm_out(from_h, h, w_hh);
      }
      const Tensor next = own.unprojected.defined() ? own.unprojected[t] : own.h[t];
      const Tensor gates = own.gates.defined() ? own.gates[t] : Tensor();
      launch_on_device_of(call_.name(), call_.input, [&](DeviceStream stream) {
        const Tensor x_of_step = from_x[t];
        switch (call_.mode) {
          case RecurrentMode::kTanh:
          case RecurrentMode::kRelu:
            launches().rnn(data(x_of_step), data(from_h), memory(next), batch_, hidden_, is_tanh(),
                           stream);
            break;
          case RecurrentMode::kGru:
            launches().gru(data(x_of_step), data(from_h), data(h), memory(next), memory(gates),
                           batch_, hidden_, stream);
            break;
          case RecurrentMode::kLstm:
            launches().lstm(data(x_of_step), data(from_h),
                            data(before < 0 ? first_c : own.c[before]), memory(next),
                            memory(own.c[t]), memory(gates), batch_, hidden_, stream);
            break;
        }
      });
      if (own.unprojected.defined()) {
        Tensor projected = own.h[t];
        at::mm_out(projected, next, w.w_hr.t());
      }
    });
  }

  // [T, B, F] of the steps before each: `first`, then `all` but the last one.
  Tensor before(int64_t direction, const Tensor& first, const Tensor& all) const {
    const Tensor one = first.unsqueeze(0);
    return direction == 1 ? at::cat({all.narrow(0, 1, steps_ - 1), one})
                          : at::cat({one, all.narrow(0, 0, steps_ - 1)});
  }

  // The gradient of x; dhx, dcx and those of the weights, in the order of the call's, are set.
  Tensor run_backward(int64_t layer, int64_t direction, const Tensor& x, const Kept& own,
                      const Tensor& dy, const Tensor& dhy, const Tensor& dcy, Tensor& dhx,
                      Tensor& dcx, Tensor* weights) const {
    const DirectionWeights w = weights_of(call_, sizes_, layer, direction);
    const at::TensorOptions options = call_.input.options();
    const int64_t gates = call_.mode == RecurrentMode::kGru || call_.is_lstm() ? 4 : 1;
    const Tensor first_h = call_.hx[index(layer, direction)].contiguous();
    const Tensor first_c =
        call_.is_lstm() ? call_.cx[index(layer, direction)].contiguous() : Tensor();
    Tensor gradients = at::empty({steps_, batch_, gates * hidden_}, options);
    // Of what the kernels read, since dy is added to it.
    Tensor dh = at::empty({steps_, batch_, state_}, options);
    Tensor dc = !call_.is_lstm() ? Tensor() : at::empty({batch_, hidden_}, options);
    Tensor dc_after = dcy.defined() ? dcy.contiguous() : Tensor();
    Tensor carried = dhy.defined() ? dhy : at::zeros({batch_, state_}, options);
    Tensor directly =
        call_.mode == RecurrentMode::kGru ? at::empty({batch_, hidden_}, options) : Tensor();
    const int64_t of_h = call_.gates() * hidden_;  // r z n_h of a GRU's r z n_h n_x
    each_step(direction, /*backward=*/true, [&](int64_t t, int64_t before) {
      Tensor whole = dh[t];
      if (dy.defined()) {
        at::add_out(whole, carried, dy[t]);
      } else {
        whole.copy_(carried);
      }
      const Tensor own_dh = w.w_hr.defined() ? at::mm(whole, w.w_hr) : whole;
      Tensor of_step = gradients[t];
      launch_on_device_of({call_.name(), "_backward"}, call_.input, [&](DeviceStream stream) {
        switch (call_.mode) {
          case RecurrentMode::kTanh:
          case RecurrentMode::kRelu:
            launches().rnn_backward(data(own_dh), data(own.h[t]), memory(of_step), batch_, hidden_,
                                    is_tanh(), stream);
            break;
          case RecurrentMode::kGru:
            launches().gru_backward(data(own_dh), data(own.gates[t]),
                                    data(before < 0 ? first_h : own.h[before]), memory(of_step),
                                    memory(directly), batch_, hidden_, stream);
            break;
          case RecurrentMode::kLstm:
            launches().lstm_backward(data(own_dh), data(dc_after), data(own.gates[t]),
                                     data(before < 0 ? first_c : own.c[before]), data(own.c[t]),
                                     memory(of_step), memory(dc), batch_, hidden_, stream);
            break;
        }
      });
      dc_after = dc;
      const Tensor of_sums = of_step.narrow(1, 0, of_h);
      carried = directly.defined() ? at::addmm(directly, of_sums, w.w_hh) : at::mm(of_sums, w.w_hh);
    });
    dhx = carried;
    dcx = dc_after;
    const auto as_rows = [](const Tensor& t) { return t.reshape({-1, t.size(-1)}); };
    const Tensor for_h = as_rows(gradients.narrow(2, 0, of_h));
    const Tensor for_x = call_.mode == RecurrentMode::kGru
                             ? as_rows(at::cat({gradients.narrow(2, 0, 2 * hidden_),
                                                gradients.narrow(2, 3 * hidden_, hidden_)},
                                               -1))
                             : for_h;
    *weights++ = at::mm(for_x.t(), as_rows(x));
    *weights++ = at::mm(for_h.t(), as_rows(before(direction, first_h, own.h)));
    if (call_.has_biases) {
      *weights++ = for_x.sum(0);
      *weights++ = for_h.sum(0);
    }
    if (sizes_.projects) {
      *weights++ = at::mm(as_rows(dh).t(), as_rows(own.unprojected));
    }
    return at::mm(for_x, w.w_ih).view({steps_, batch_, w.w_ih.size(1)});
  }

  const RecurrentCall& call_;
  const RecurrentSizes& sizes_;
  int64_t steps_;
  int64_t batch_;
  int64_t hidden_;
  int64_t state_;
};

// A call without a number is the composition's.
bool has_numbers(const RecurrentCall& call) { return call.input.numel() > 0; }

RecurrentResults recurrent_cuda(const RecurrentCall& call, bool training) {
  const RecurrentSizes sizes = check_recurrent(call.name(), call);
  Tensor reserve;
  if (training) {
    reserve = at::empty({reserve_elements(call, sizes).guard_int(__FILE__, __LINE__)},
                        call.input.options().dtype(reserve_dtype(call)));
  }
  if (!recurrent_covered(call) || !has_numbers(call)) {
    RecurrentResults results = compose_recurrent(call);
    results.reserve = reserve;  // as large as fake tensors say
    return results;
  }
  return Layers(call, sizes).forward(reserve);
}

RecurrentGradients recurrent_backward_cuda(const RecurrentCall& call,
                                           const RecurrentOutputGradients& grads,
                                           const Tensor& reserve, const RecurrentMask& mask) {
  const OperatorName op(call.name(), "_backward");
  const RecurrentSizes sizes = check_recurrent_backward(op, call, grads, mask);
  check_defined(op, "reserve", reserve);
  if (!recurrent_covered(call) || !has_numbers(call) || reserve.numel() == 0) {
    return compose_recurrent_backward(call, grads, mask);
  }
  const int64_t expected = reserve_elements(call, sizes).guard_int(__FILE__, __LINE__);
  TORCH_CHECK(reserve.device() == call.input.device() && has_sizes(reserve) &&
                  reserve.is_contiguous() && reserve.scalar_type() == reserve_dtype(call) &&
                  reserve.numel() == expected,
              op, "reserve: expected what ", call.name(), "_training() returned, ", expected,
              " elements of ", reserve_dtype(call), " on ", call.input.device(), ", got ",
              reserve.toString(), " of shape ", reserve.sizes(), " on ", reserve.device());
  RecurrentGradients all = Layers(call, sizes).backward(grads, reserve);
  keep_wanted(call, mask, all);
  return all;
}

template <class F, class Schema, class TrainingSchema>
struct Registrations {
  const CudaRegistration forward{
      F::op, Cuda<&ForwardKernel<F, Schema>::template inference<&recurrent_cuda>>{}};
  const CudaRegistration training{
      F::training_op,
      Cuda<&ForwardKernel<F, TrainingSchema>::template training<&recurrent_cuda>>{}};
};
const Registrations<Rnn, RnnSchemaOf<RnnResults>, RnnSchemaOf<RnnTrainingResults>> register_rnn;
const Registrations<Gru, GruSchemaOf<RnnResults>, GruSchemaOf<RnnTrainingResults>> register_gru;
const Registrations<Lstm, LstmSchemaOf<LstmResults>, LstmSchemaOf<LstmTrainingResults>>
    register_lstm;

const CudaRegistration register_rnn_backward{
    rnn_backward_op,
    Cuda<&RnnBackwardKernel<Rnn, c10::string_view>::kernel<&recurrent_backward_cuda>>{}};
const CudaRegistration register_gru_backward{
    gru_backward_op, Cuda<&RnnBackwardKernel<Gru>::kernel<&recurrent_backward_cuda>>{}};
const CudaRegistration register_lstm_backward{
    lstm_backward_op, Cuda<&LstmBackwardKernel::kernel<&recurrent_backward_cuda>>{}};

}  // namespace
}  // namespace fastact
