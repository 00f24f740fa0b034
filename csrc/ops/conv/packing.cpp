// Weights packed ahead of their convolutions, and which algorithm computes.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/memory.h"
#include "cpu/tensors.h"
#include "ops/conv/problem.h"

namespace fastact {
namespace {

// The weight's shape and geometry decide, for images of any size.
ConvProblem packing_problem(const Tensor& weight, const ConvGeometry& geometry) {
  at::DimVector sizes{1, weight.size(1) * geometry.groups.guard_int(__FILE__, __LINE__)};
  for (int64_t i = 2; i < weight.dim(); ++i) {
    sizes.push_back(geometry.dilation[i - 2].guard_int(__FILE__, __LINE__) * weight.size(i));
  }
  const auto problem = conv_problem(sizes, at::MemoryFormat::ChannelsLast, weight, geometry);
  return problem ? *problem : ConvProblem{};
}

ConvAlgorithm algorithm_to_pack(const ConvProblem& problem, Winograd setting) {
  return problem.images && enabled() ? packed_conv_algorithm(problem, setting)
                                     : ConvAlgorithm::kNone;
}

// The bytes that pack_conv() returns: 0 where no kernel reads them.
int64_t packed_bytes(const Tensor& weight, const ConvGeometry& geometry, Winograd setting) {
  const ConvProblem problem = packing_problem(weight, geometry);
  return conv_packed_bytes(problem, algorithm_to_pack(problem, setting));
}

}  // namespace

Tensor pack_conv_cpu(const Tensor& weight_, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                     c10::SymIntArrayRef dilation, c10::SymInt groups,
                     std::optional<c10::string_view> winograd) {
  const ConvGeometry geometry =
      conv_geometry("pack_conv", weight_, stride, padding, dilation, std::move(groups));
  const Winograd setting = winograd_setting("pack_conv", winograd);
  if (!has_kernels(weight_)) {
    return empty({0}, at::kByte);
  }
  const Tensor weight = lies_for_engines(weight_) ? weight_ : contiguous(weight_);
  Tensor packed = empty({packed_bytes(weight, geometry, setting)}, at::kByte);
  ConvProblem problem = packing_problem(weight, geometry);
  problem.weight = weight.const_data_ptr();
  conv_pack(problem, algorithm_to_pack(problem, setting), packed.mutable_data_ptr());
  return packed;
}

Tensor pack_conv_meta(const Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                      c10::SymIntArrayRef dilation, c10::SymInt groups,
                      std::optional<c10::string_view> winograd) {
  const ConvGeometry geometry =
      conv_geometry("pack_conv", weight, stride, padding, dilation, std::move(groups));
  return at::empty({packed_bytes(weight, geometry, winograd_setting("pack_conv", winograd))},
                   weight.options().dtype(at::kByte));
}

ConvAlgorithm packed_algorithm(const Tensor& packed, const Tensor& weight,
                               const ConvGeometry& geometry) {
  const ConvProblem problem = packing_problem(weight, geometry);
  for (const Winograd setting : {Winograd::kSafe, Winograd::kFast, Winograd::kOff}) {
    const ConvAlgorithm algorithm = algorithm_to_pack(problem, setting);
    if (algorithm != ConvAlgorithm::kNone &&
        packed.numel() == conv_packed_bytes(problem, algorithm)) {
      return algorithm;
    }
  }
  return ConvAlgorithm::kNone;
}

void check_packed_conv(const Tensor& packed, const Tensor& weight, const ConvGeometry& geometry) {
  const OperatorName op("conv_packed");
  check_defined(op, "packed", packed);
  TORCH_CHECK(packed.scalar_type() == at::kByte && packed.dim() == 1 && has_sizes(packed), op,
              "packed: expected a 1-dimensional uint8 tensor, got ", packed.toString(),
              " of shape ", packed.sym_sizes());
  TORCH_CHECK(packed.device() == weight.device(), op, "packed: expected the device of weight, ",
              weight.device(), ", got ", packed.device());
  if (!has_sizes(weight) || weight.unsafeGetTensorImpl()->has_symbolic_sizes_strides() ||
      packed.sym_numel() == 0) {
    return;
  }
  TORCH_CHECK(
      packed.is_contiguous() && packed_algorithm(packed, weight, geometry) != ConvAlgorithm::kNone,
      op, "packed: expected what pack_conv() returns of weight, got ", packed.sym_numel(),
      " bytes");
}

namespace {

std::string algorithm_name(ConvAlgorithm algorithm) {
  switch (algorithm) {
    case ConvAlgorithm::kWinograd2:
      return "winograd2";
    case ConvAlgorithm::kWinograd4:
      return "winograd4";
    case ConvAlgorithm::kDepthwise:
      return "depthwise";
    case ConvAlgorithm::kPointwise:
      return "pointwise";
    case ConvAlgorithm::kNone:
      return "aten";
  }
  TORCH_INTERNAL_ASSERT(false);
}

std::string conv_algorithm_op(const Tensor& input, const Tensor& weight, c10::SymIntArrayRef stride,
                              c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                              c10::SymInt groups, bool packed) {
  const ConvGeometry geometry =
      conv_geometry("conv", weight, stride, padding, dilation, std::move(groups));
  check_conv("conv", input, weight, std::nullopt, geometry);
  if (!covered(input, weight)) {
    return "aten";
  }
  const Winograd setting = winograd_setting("conv", std::nullopt);
  if (packed && input.numel()) {
    const ConvAlgorithm algorithm = algorithm_to_pack(packing_problem(weight, geometry), setting);
    if (algorithm != ConvAlgorithm::kNone) {
      return algorithm_name(algorithm);
    }
  }
  const Tensor x = batched(input, has_batch(input, weight));
  return algorithm_name(algorithm_of(
      conv_problem(x.sizes(), conv_memory_format(x, weight), weight, geometry), weight, setting));
}

TORCH_LIBRARY_IMPL(fastact, CompositeImplicitAutograd, m) {
  m.impl("conv_algorithm", TORCH_FN(conv_algorithm_op));
}

}  // namespace

}  // namespace fastact
