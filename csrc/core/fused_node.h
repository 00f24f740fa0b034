// What the autograd nodes of the fused families (linear, conv) keep.
#pragma once

#include <string>
#include <vector>

#include "core/fused.h"
#include "core/node.h"

namespace fastact {

// What the node of a fused operator keeps, but for what is the family's own.
struct FusedState {
  std::optional<std::string> activation;
  std::vector<double> parameters;
  bool save_output = true;
  bool saved_is_output = false;
  SavedVariable saved;  // the output or the pre-activation
  SavedVariable input;
  SavedVariable weight;
  // Where `saved` is the pre-activation, so that higher orders can form it again.
  SavedVariable bias;
  SavedVariable slope;

  template <class F>
  void each_saved(const F& f) {
    f(saved, saved_is_output);
    for (SavedVariable* variable : {&input, &weight, &bias, &slope}) {
      f(*variable, /*is_output=*/false);
    }
  }
  template <class F>
  void each_attribute(const F& f) {
    f(activation);
    f(parameters);
    f(save_output);
  }

  // How the output was made, and what backward reads of that: the pre-activation where it is
  // defined, else the output, if the activation needs one of them.
  void keep(const Epilogue& epilogue, ActivationName name, at::ArrayRef<double> values,
            bool output_is_saved, const Tensor& output, const Tensor& pre_activation,
            const Tensor& bias_, const Tensor& slope_) {
    if (name) {
      activation = std::string(*name);
    }
    parameters = values.vec();
    save_output = output_is_saved;
    if (pre_activation.defined()) {
      saved = SavedVariable(pre_activation, /*is_output=*/false);
      bias = SavedVariable(bias_, /*is_output=*/false);
      slope = SavedVariable(slope_, /*is_output=*/false);
    } else if (!epilogue.is_identity()) {
      saved_is_output = true;
      saved = SavedVariable(output, /*is_output=*/true);
    }
  }

  // f(mask) gives the gradients that the node's task wants.
  template <class N, class F>
  void gradients(N& node, const Tensor& grad, variable_list& result, const F& f) const {
    FusedMask mask;
    for (std::size_t i = 0; i < mask.size(); ++i) {
      mask[i] = node.task_should_compute_output(i);
    }
    if (!activation && mask[4]) {
      result[4] = grad;  // which an operator may not return
      mask[4] = false;
    }
    const FusedGradients all = f(mask);
    const auto take = [&](int i, const Tensor& gradient) {
      if (mask[i]) {
        result[i] = gradient;
      }
    };
    take(0, std::get<0>(all));
    take(1, std::get<1>(all));
    take(2, std::get<2>(all));
    take(3, std::get<3>(all));
    take(4, std::get<4>(all));
  }
};

}  // namespace fastact
