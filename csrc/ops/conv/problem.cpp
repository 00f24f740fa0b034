#include "ops/conv/problem.h"

#include "cpu/memory.h"

namespace fastact {

std::optional<ConvProblem> conv_problem(at::IntArrayRef sizes, at::MemoryFormat format,
                                        const Tensor& weight, const ConvGeometry& geometry) {
  if (!is_kernel_dtype(weight.scalar_type()) || weight.dim() > 4 || weight.numel() == 0 ||
      c10::multiply_integers(sizes) == 0) {
    return std::nullopt;
  }
  const auto number = [](const c10::SymInt& value) { return value.guard_int(__FILE__, __LINE__); };
  // Dimension i of the geometry, counted from the last; there is none above a line.
  const auto axis = [&](int64_t i) -> ConvAxis {
    const int64_t dim = static_cast<int64_t>(geometry.stride.size()) - i;
    if (dim < 0) {
      return {1, 1, 1, 1, 0, 1};
    }
    ConvAxis a{sizes[dim + 2],
               0,
               weight.size(dim + 2),
               number(geometry.stride[dim]),
               number(geometry.padding[dim]),
               number(geometry.dilation[dim])};
    a.output = conv_output_size(a.input, a.kernel, a.stride, a.padding, a.dilation);
    return a;
  };
  ConvProblem p{};
  p.dtype = table_dtype(weight.scalar_type());
  p.images = sizes[0];
  p.channels = sizes[1];
  p.out_channels = weight.size(0);
  p.groups = number(geometry.groups);
  p.y = axis(2);
  p.x = axis(1);
  p.weight_channels_last = !weight.is_contiguous();
  p.output.dtype = p.dtype;
  p.output.channels_last = format != at::MemoryFormat::Contiguous;
  p.output.channels = p.out_channels;
  p.output.pixels = p.pixels();
  return p;
}

bool lies_for_engines(const Tensor& weight) {
  return weight.is_contiguous() || weight.is_contiguous(at::MemoryFormat::ChannelsLast);
}

ConvAlgorithm algorithm_of(const std::optional<ConvProblem>& problem, const Tensor& weight,
                           Winograd setting) {
  return problem && lies_for_engines(weight) && enabled() ? conv_algorithm(*problem, setting)
                                                          : ConvAlgorithm::kNone;
}

Tensor empty_in(at::MemoryFormat format, at::IntArrayRef sizes, at::ScalarType dtype) {
  if (format == at::MemoryFormat::Contiguous) {
    return empty(sizes, dtype);
  }
  // The channels behind all others.
  at::DimVector memory{sizes[0]};
  at::DimVector order{0, static_cast<int64_t>(sizes.size()) - 1};
  for (int64_t i = 2; i < static_cast<int64_t>(sizes.size()); ++i) {
    memory.push_back(sizes[i]);
    order.push_back(i - 1);
  }
  memory.push_back(sizes[1]);
  return empty(memory, dtype).permute(order);
}

}  // namespace fastact
