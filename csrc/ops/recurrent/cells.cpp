// One step of a layer: the sequence operators with a sequence of one step.
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "core/autocast.h"
#include "ops/recurrent/recurrent.h"

namespace fastact {
namespace {

// The weights of one layer; a bias that is missing beside the other one is 0.
struct CellWeights {
  std::vector<Tensor> all;
  bool has_biases;

  CellWeights(const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
              const OptionalTensor& b_hh)
      : all{w_ih, w_hh}, has_biases(is_defined(b_ih) || is_defined(b_hh)) {
    if (has_biases) {
      all.push_back(is_defined(b_ih) ? *b_ih : at::zeros_like(*b_hh));
      all.push_back(is_defined(b_hh) ? *b_hh : at::zeros_like(*b_ih));
    }
  }
};

// Raises unless all fit, naming the cell, and the argument as its schema does.
void check_cell(const OperatorName& op, int64_t gates, const Tensor& input, const Tensor& hx,
                const Tensor* cx, const Tensor& w_ih, const Tensor& w_hh,
                const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  const auto check_matrix = [&](const char* name, const Tensor& t) {
    check_defined(op, name, t);
    TORCH_CHECK(has_sizes(t), op, name, ": expected a strided tensor, got ", t.layout());
    TORCH_CHECK(t.dim() == 2, op, name, ": expected 2 dimensions, got ", t.dim());
    check_like(op, name, t, "input", input);
  };
  const auto check_bias = [&](const char* name, const OptionalTensor& t) {
    if (is_defined(t)) {
      check_like(op, name, *t, "input", input);
      check_sizes(op, name, *t, "w_ih's rows", {w_ih.sym_size(0)});
    }
  };
  check_matrix("input", input);
  check_matrix("w_ih", w_ih);
  check_matrix("w_hh", w_hh);
  check_matrix("hx", hx);
  const c10::SymInt hidden = hx.sym_size(1);
  check_sizes(op, "w_ih", w_ih, "hx's and input's last dimensions",
              {hidden * gates, input.sym_size(1)});
  check_sizes(op, "w_hh", w_hh, "hx's last dimension", {hidden * gates, hidden});
  check_sizes(op, "hx", hx, "the batch", {input.sym_size(0), hidden});
  if (cx) {
    check_matrix("cx", *cx);
    check_sizes(op, "cx", *cx, "hx", hx.sym_sizes());
  }
  check_bias("b_ih", b_ih);
  check_bias("b_hh", b_hh);
}

Tensor rnn_cell(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                c10::string_view nonlinearity) {
  check_cell("rnn_cell", 1, input, hx, nullptr, w_ih, w_hh, b_ih, b_hh);
  const CellWeights w(w_ih, w_hh, b_ih, b_hh);
  return std::get<1>(rnn_op.call(input.unsqueeze(0), hx.unsqueeze(0), w.all, std::nullopt,
                                 std::nullopt, w.has_biases,
                                 /*bidirectional=*/false, nonlinearity))
      .squeeze(0);
}

Tensor gru_cell(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  check_cell("gru_cell", 3, input, hx, nullptr, w_ih, w_hh, b_ih, b_hh);
  const CellWeights w(w_ih, w_hh, b_ih, b_hh);
  return std::get<1>(gru_op.call(input.unsqueeze(0), hx.unsqueeze(0), w.all, std::nullopt,
                                 std::nullopt, w.has_biases,
                                 /*bidirectional=*/false))
      .squeeze(0);
}

std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, const Tensor& hx, const Tensor& cx,
                                     const Tensor& w_ih, const Tensor& w_hh,
                                     const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  check_cell("lstm_cell", 4, input, hx, &cx, w_ih, w_hh, b_ih, b_hh);
  const CellWeights w(w_ih, w_hh, b_ih, b_hh);
  const auto results = lstm_op.call(input.unsqueeze(0), hx.unsqueeze(0), cx.unsqueeze(0), w.all,
                                    std::nullopt, std::nullopt, w.has_biases,
                                    /*bidirectional=*/false);
  return {std::get<1>(results).squeeze(0), std::get<2>(results).squeeze(0)};
}

TORCH_LIBRARY_IMPL(fastact, CompositeImplicitAutograd, m) {
  m.impl("rnn_cell", TORCH_FN(rnn_cell));
  m.impl("gru_cell", TORCH_FN(gru_cell));
  m.impl("lstm_cell", TORCH_FN(lstm_cell));
}

const bool register_autocast = [] {
  for (const char* name : {"rnn_cell", "gru_cell", "lstm_cell"}) {
    implement_autocast(name);
  }
  return true;
}();

}  // namespace
}  // namespace fastact
