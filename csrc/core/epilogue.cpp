#include "core/epilogue.h"

#include <ATen/ops/log_softmax.h>
#include <ATen/ops/prelu.h>

#include <cmath>

#include "ops/prelu/prelu.h"
#include "ops/softmax/softmax.h"

namespace fastact {

// What fused operators ask of an activation.
struct EpilogueKind {
  using Gradients = Epilogue::Gradients;

  const char* name;
  std::size_t num_parameters = 0;
  std::array<double, kMaxParameters> defaults{};
  bool takes_slope = false;
  bool is_elementwise = true;
  bool takes_dim = false;  // its first parameter is one
  bool is_logarithm = false;
  bool (*saves_output)(const Epilogue&);
  Tensor (*apply)(const Epilogue&, const Tensor& z);
  Tensor (*compose)(const Epilogue&, const Tensor& z);
  Gradients (*backward)(const Epilogue&, const Tensor& grad, const Tensor& saved);
};

namespace {

using Gradients = Epilogue::Gradients;

constexpr EpilogueKind kIdentity = {
    .name = "None",
    .saves_output = [](const Epilogue&) { return true; },
    .apply = [](const Epilogue&, const Tensor& z) { return z; },
    .compose = [](const Epilogue&, const Tensor& z) { return z; },
    .backward = [](const Epilogue&, const Tensor& grad,
                   const Tensor&) { return Gradients{grad, {}}; },
};

// Every row of activations(): the name and the parameters are that row's.
constexpr EpilogueKind kUnary = {
    .name = nullptr,
    .saves_output = [](const Epilogue& e) { return e.activation()->saves_output(e.parameters()); },
    .apply = [](const Epilogue& e,
                const Tensor& z) { return e.activation()->call(z, e.parameters()); },
    .compose =
        [](const Epilogue& e, const Tensor& z) {
          e.activation()->check(e.parameters());
          return e.activation()->compose(z, e.parameters());
        },
    .backward =
        [](const Epilogue& e, const Tensor& grad, const Tensor& saved) {
          return Gradients{e.activation()->call_backward(grad, saved, e.parameters()), {}};
        },
};

// Those with kernels of their own.
constexpr EpilogueKind kKinds[] = {
    {
        .name = "prelu",
        .takes_slope = true,
        .saves_output = [](const Epilogue&) { return false; },
        .apply = [](const Epilogue& e, const Tensor& z) { return prelu_op.call(z, e.slope()); },
        .compose = [](const Epilogue& e, const Tensor& z) { return at::prelu(z, e.slope()); },
        .backward =
            [](const Epilogue& e, const Tensor& grad, const Tensor& saved) {
              auto [z, slope] = prelu_backward_op.call(grad, saved, e.slope());
              return Gradients{z, slope};
            },
    },
    {
        .name = "softmax",
        .num_parameters = 2,
        .defaults = {-1, 1},
        .is_elementwise = false,
        .takes_dim = true,
        .saves_output = [](const Epilogue&) { return true; },
        .apply =
            [](const Epilogue& e, const Tensor& z) {
              return softmax_op.call(z, e.softmax().dim, e.softmax().scale);
            },
        .compose =
            [](const Epilogue& e, const Tensor& z) {
              return compose_softmax(z, e.softmax().dim, e.softmax().scale);
            },
        .backward =
            [](const Epilogue& e, const Tensor& grad, const Tensor& saved) {
              const auto [dim, scale, log] = e.softmax();
              return Gradients{softmax_backward_op.call(grad, saved, dim, scale), {}};
            },
    },
    {
        .name = "log_softmax",
        .num_parameters = 1,
        .defaults = {-1, 1},
        .is_elementwise = false,
        .takes_dim = true,
        .is_logarithm = true,
        .saves_output = [](const Epilogue&) { return true; },
        .apply = [](const Epilogue& e,
                    const Tensor& z) { return log_softmax_op.call(z, e.softmax().dim); },
        .compose = [](const Epilogue& e,
                      const Tensor& z) { return at::log_softmax(z, e.softmax().dim); },
        .backward =
            [](const Epilogue& e, const Tensor& grad, const Tensor& saved) {
              return Gradients{log_softmax_backward_op.call(grad, saved, e.softmax().dim), {}};
            },
    },
};

const EpilogueKind* find_kind(std::string_view name) {
  const auto* kind = std::find_if(std::begin(kKinds), std::end(kKinds),
                                  [&](const EpilogueKind& k) { return k.name == name; });
  return kind == std::end(kKinds) ? nullptr : kind;
}

std::string kinds_with_slope() {
  std::string names;
  for (const EpilogueKind& kind : kKinds) {
    if (kind.takes_slope) {
      names += (names.empty() ? "activation='" : ", '") + std::string(kind.name) + "'";
    }
  }
  return names;
}

constexpr double kMaxDim =
    1 << 16;  // above any number of dimensions; NaN and infinity are not below

bool is_dim(double value) { return std::trunc(value) == value && std::abs(value) < kMaxDim; }

}  // namespace

Epilogue::Epilogue(const char* op, std::optional<std::string_view> activation,
                   at::ArrayRef<double> parameters) {
  kind_ = activation ? find_kind(*activation) : &kIdentity;
  std::size_t expected = 0;
  if (kind_) {
    expected = kind_->num_parameters;
    parameters_ = kind_->defaults;
  } else {
    kind_ = &kUnary;
    activation_ = find_activation(*activation);
    TORCH_CHECK_VALUE(activation_, "fastact.", op,
                      "(): activation: expected a registry name, got '", *activation, "'");
    expected = activation_->num_parameters;
    parameters_ = activation_->parameter_defaults;
  }
  TORCH_CHECK_TYPE(!kind_->takes_dim || parameters.empty() || is_dim(parameters[0]), "fastact.", op,
                   "(): dim: expected an integer, got ", parameters[0]);
  TORCH_CHECK_TYPE(parameters.empty() || parameters.size() == expected, "fastact.", op,
                   "(): params: expected none or ", expected, " for activation='",
                   activation.value_or(kIdentity.name), "', got ", parameters.size());
  std::copy(parameters.begin(), parameters.end(), parameters_.begin());
}

Epilogue::Epilogue(const char* op, std::optional<std::string_view> activation,
                   at::ArrayRef<double> parameters, const std::optional<Tensor>& slope)
    : Epilogue(op, activation, parameters) {
  const bool has_slope = slope && slope->defined();
  TORCH_CHECK_TYPE(kind_->takes_slope || !has_slope, "fastact.", op,
                   "(): slope: expected None (only ", kinds_with_slope(),
                   " takes it), got a tensor");
  TORCH_CHECK_TYPE(!kind_->takes_slope || has_slope, "fastact.", op,
                   "(): slope: expected a tensor for activation='", kind_->name, "', got None");
  if (has_slope) {
    slope_ = *slope;
  }
}

Epilogue Epilogue::without_slope(const char* op, std::optional<std::string_view> activation,
                                 at::ArrayRef<double> parameters) {
  return {op, activation, parameters};
}

bool Epilogue::is_identity() const { return kind_ == &kIdentity; }

bool Epilogue::is_elementwise() const { return kind_->is_elementwise; }

Epilogue::Softmax Epilogue::softmax() const {
  return {static_cast<int64_t>(parameters_[0]), parameters_[1], kind_->is_logarithm};
}

bool Epilogue::saves_output() const { return kind_->saves_output(*this); }

Tensor Epilogue::apply_in_place(Tensor z) const {
  if (activation_ && is_kernel_dtype(z.scalar_type()) && has_sizes(z)) {
    return activation_->call_(z, parameters_.data());
  }
  return apply(z);
}

Tensor Epilogue::apply(const Tensor& z) const { return kind_->apply(*this, z); }

Tensor Epilogue::compose(const Tensor& z) const { return kind_->compose(*this, z); }

Epilogue::Gradients Epilogue::backward(const Tensor& grad, const Tensor& saved) const {
  return kind_->backward(*this, grad, saved);
}

}  // namespace fastact
