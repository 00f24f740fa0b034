// Recurrent layers (RNN, GRU, LSTM): whole sequences, all layers and directions in one operator.
// What their autograd, their compositions and their CPU kernels share.
#pragma once

#include <ATen/core/List.h>

#include <tuple>
#include <vector>

#include "core/checks.h"
#include "core/operator.h"

namespace fastact {

// ---- operators ----------------------------------------------------------------------------------

// By the names of the schemas in schemas.cpp. hx (and hy) [layers * directions, B, H], or P in
// place of H where an LSTM projects; cx [layers * directions, B, H]; weights as torch.nn's modules
// hold them, for each layer and direction w_ih, w_hh, [b_ih, b_hh], [w_hr]; output [T, B,
// directions * H].
using RnnResults = std::tuple<Tensor, Tensor>;           // output, hy
using LstmResults = std::tuple<Tensor, Tensor, Tensor>;  // output, hy, cy
// The same and the reserve: what backward reads (see reserve_elements()).
using RnnTrainingResults = std::tuple<Tensor, Tensor, Tensor>;
using LstmTrainingResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// The gradients of input, hx, (cx) and weights, empty where the mask is false. The mask holds their
// elements in the same order, weights one by one.
using RnnGradients = std::tuple<Tensor, Tensor, std::vector<Tensor>>;
using LstmGradients = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;
using RecurrentMask = c10::List<bool>;

template <class Results>
using RnnSchemaOf = Results(const Tensor& input, const Tensor& hx, at::TensorList weights,
                            const OptionalTensor& lengths, const OptionalTensor& dropout_noise,
                            bool has_biases, bool bidirectional, c10::string_view nonlinearity);
template <class Results>
using GruSchemaOf = Results(const Tensor& input, const Tensor& hx, at::TensorList weights,
                            const OptionalTensor& lengths, const OptionalTensor& dropout_noise,
                            bool has_biases, bool bidirectional);
template <class Results>
using LstmSchemaOf = Results(const Tensor& input, const Tensor& hx, const Tensor& cx,
                             at::TensorList weights, const OptionalTensor& lengths,
                             const OptionalTensor& dropout_noise, bool has_biases,
                             bool bidirectional);
using RnnBackwardSchema = RnnGradients(const OptionalTensor& grad_output,
                                       const OptionalTensor& grad_hy, const Tensor& input,
                                       const Tensor& hx, at::TensorList weights,
                                       const OptionalTensor& lengths,
                                       const OptionalTensor& dropout_noise, const Tensor& reserve,
                                       bool has_biases, bool bidirectional,
                                       c10::string_view nonlinearity, RecurrentMask mask);
using GruBackwardSchema = RnnGradients(const OptionalTensor& grad_output,
                                       const OptionalTensor& grad_hy, const Tensor& input,
                                       const Tensor& hx, at::TensorList weights,
                                       const OptionalTensor& lengths,
                                       const OptionalTensor& dropout_noise, const Tensor& reserve,
                                       bool has_biases, bool bidirectional, RecurrentMask mask);
using LstmBackwardSchema = LstmGradients(const OptionalTensor& grad_output,
                                         const OptionalTensor& grad_hy,
                                         const OptionalTensor& grad_cy, const Tensor& input,
                                         const Tensor& hx, const Tensor& cx, at::TensorList weights,
                                         const OptionalTensor& lengths,
                                         const OptionalTensor& dropout_noise, const Tensor& reserve,
                                         bool has_biases, bool bidirectional, RecurrentMask mask);

inline constinit Operator<RnnSchemaOf<RnnResults>> rnn_op{"rnn"};
inline constinit Operator<GruSchemaOf<RnnResults>> gru_op{"gru"};
inline constinit Operator<LstmSchemaOf<LstmResults>> lstm_op{"lstm"};
inline constinit Operator<RnnSchemaOf<RnnTrainingResults>> rnn_training_op{"rnn_training"};
inline constinit Operator<GruSchemaOf<RnnTrainingResults>> gru_training_op{"gru_training"};
inline constinit Operator<LstmSchemaOf<LstmTrainingResults>> lstm_training_op{"lstm_training"};
inline constinit Operator<RnnBackwardSchema> rnn_backward_op{"rnn_backward"};
inline constinit Operator<GruBackwardSchema> gru_backward_op{"gru_backward"};
inline constinit Operator<LstmBackwardSchema> lstm_backward_op{"lstm_backward"};

// ---- one call of any of them --------------------------------------------------------------------

// What one step of a layer computes. The gates lie in PyTorch's order: r z n, and i f g o.
enum class RecurrentMode { kTanh, kRelu, kGru, kLstm };

// Arguments of rnn, gru and lstm alike; borrowed from them.
struct RecurrentCall {
  RecurrentMode mode;
  const Tensor& input;
  const Tensor& hx;
  const Tensor& cx;  // undefined but for an LSTM
  at::TensorList weights;
  const OptionalTensor& lengths;
  const OptionalTensor& dropout_noise;
  bool has_biases;
  bool bidirectional;

  bool is_lstm() const { return mode == RecurrentMode::kLstm; }
  const char* name() const;
  int64_t gates() const;
  int64_t directions() const { return bidirectional ? 2 : 1; }
};
struct RecurrentResults {
  Tensor output;
  Tensor hy;
  Tensor cy;       // defined for an LSTM
  Tensor reserve;  // defined in training
};
struct RecurrentOutputGradients {
  const Tensor& output;  // each undefined where it is 0
  const Tensor& hy;
  const Tensor& cy;
};
struct RecurrentGradients {
  Tensor input;  // each undefined where the mask is false
  Tensor hx;
  Tensor cx;
  std::vector<Tensor> weights;
};

// Raises TypeError, or ValueError for a name that is none.
RecurrentMode mode_of(c10::string_view nonlinearity, const OperatorName& op);

// The sizes of a call that check_recurrent() found to fit each other.
struct RecurrentSizes {
  c10::SymInt steps;   // T
  c10::SymInt batch;   // B
  c10::SymInt input;   // I
  c10::SymInt hidden;  // H
  c10::SymInt state;   // of h: H, or P where an LSTM projects
  int64_t layers;
  int64_t directions;
  int64_t weights_each;  // of a layer and direction
  bool projects;
};
// Raises unless all arguments fit, in PyTorch's order of kinds: TypeError for None, RuntimeError
// for dtypes, devices and sizes.
RecurrentSizes check_recurrent(const OperatorName& op, const RecurrentCall& call);
// Raises unless every length is in [0, T]; where they are known.
void check_length_values(const OperatorName& op, const RecurrentCall& call);
// Raises unless the gradients fit the outputs, and the mask and the reserve the call.
RecurrentSizes check_recurrent_backward(const OperatorName& op, const RecurrentCall& call,
                                        const RecurrentOutputGradients& grads,
                                        const RecurrentMask& mask);

// The w_ih, w_hh, b_ih, b_hh and w_hr of a layer and direction; undefined where it has none.
struct DirectionWeights {
  Tensor w_ih;  // [gates * H, I], or of the layer below directions * H in place of I
  Tensor w_hh;  // [gates * H, H], or P
  Tensor b_ih;
  Tensor b_hh;
  Tensor w_hr;  // [P, H]
};
DirectionWeights weights_of(const RecurrentCall& call, const RecurrentSizes& sizes, int64_t layer,
                            int64_t direction);

// ---- compositions -------------------------------------------------------------------------------

// Of ATen operators, step by step, so that every order and direction of differentiation, every
// device and every functional transform follows. (at::lstm goes to oneDNN, which has no second
// derivative.)
RecurrentResults compose_recurrent(const RecurrentCall& call);
// With an empty reserve: backward forms everything again.
RecurrentResults compose_recurrent_training(const RecurrentCall& call);
RecurrentGradients compose_recurrent_backward(const RecurrentCall& call,
                                              const RecurrentOutputGradients& grads,
                                              const RecurrentMask& mask);

// Leaves undefined what the mask does not ask for.
void keep_wanted(const RecurrentCall& call, const RecurrentMask& mask, RecurrentGradients& all);

// ---- CPU kernels --------------------------------------------------------------------------------

// The elements of the reserve, of the compute type, or 0 where the CPU kernels do not run: then
// backward forms everything again.
c10::SymInt reserve_elements(const RecurrentCall& call, const RecurrentSizes& sizes);
at::ScalarType reserve_dtype(const RecurrentCall& call);

RecurrentResults recurrent_cpu(const RecurrentCall& call, bool training);
RecurrentGradients recurrent_backward_cpu(const RecurrentCall& call,
                                          const RecurrentOutputGradients& grads,
                                          const Tensor& reserve, const RecurrentMask& mask);

}  // namespace fastact
