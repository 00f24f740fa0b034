#include "cpu/conv/conv.h"

#include <cstring>

#include "cpu/conv/engines.h"

namespace fastact {

namespace {

// Whether the processor multiplies pairs of 16-bit numbers, so that PyTorch's convolution takes
// half as long as in float32, in which the transforms would compute, or less.
bool multiplies_16_bits(Dtype dtype) {
  static const bool does = std::strcmp(kernels().name, "avx512_bf16") == 0;
  return does && size_of(dtype) == 2;
}

ConvAlgorithm winograd_of(const ConvProblem& p, Winograd setting) {
  const auto is_plain = [](const ConvAxis& a) {
    return a.kernel == 3 && a.stride == 1 && a.dilation == 1;
  };
  // Below that, the transforms take as long as the products.
  constexpr int64_t kLeastChannels = 16;
  if (setting == Winograd::kOff || !is_plain(p.y) || !is_plain(p.x) ||
      p.group_channels() < kLeastChannels || p.group_out_channels() < kLeastChannels ||
      multiplies_16_bits(p.dtype)) {
    return ConvAlgorithm::kNone;
  }
  return setting == Winograd::kFast ? ConvAlgorithm::kWinograd4 : ConvAlgorithm::kWinograd2;
}

// Whether so many pixels are worth transforming a weight for one call. With 512 channels, 49 pixels
// took 1.05 to 1.3 times as long as PyTorch's, 196 with 256 channels as long (2 threads, Zen 3).
bool pays_for_packing(const ConvProblem& p) {
  constexpr int64_t kLeastPixels = 256;
  constexpr int64_t kSmallWeight = 1 << 14;  // pairs of channels, which are transformed in cache
  const int64_t pixels = p.images * p.pixels();
  return pixels >= (p.out_channels * p.group_channels() <= kSmallWeight ? 64 : kLeastPixels);
}

}  // namespace

ConvAlgorithm conv_algorithm(const ConvProblem& p, Winograd setting) {
  if (depthwise_fits(p)) {
    return ConvAlgorithm::kDepthwise;
  }
  if (pointwise_fits(p)) {
    return ConvAlgorithm::kPointwise;
  }
  return pays_for_packing(p) ? winograd_of(p, setting) : ConvAlgorithm::kNone;
}

ConvAlgorithm packed_conv_algorithm(const ConvProblem& p, Winograd setting) {
  return pointwise_fits(p) ? ConvAlgorithm::kPointwise : winograd_of(p, setting);
}

bool conv(const ConvProblem& p, ConvAlgorithm algorithm) {
  switch (algorithm) {
    case ConvAlgorithm::kWinograd2:
      return winograd_conv(p, 2);
    case ConvAlgorithm::kWinograd4:
      return winograd_conv(p, 4);
    case ConvAlgorithm::kDepthwise:
      depthwise_conv(p);
      break;
    case ConvAlgorithm::kPointwise:
      pointwise_conv(p);
      break;
    case ConvAlgorithm::kNone:
      break;
  }
  return true;
}

int64_t conv_packed_bytes(const ConvProblem& p, ConvAlgorithm algorithm) {
  switch (algorithm) {
    case ConvAlgorithm::kWinograd2:
      return winograd_packed_bytes(p, 2);
    case ConvAlgorithm::kWinograd4:
      return winograd_packed_bytes(p, 4);
    case ConvAlgorithm::kPointwise:
      return pointwise_packed_bytes(p);
    default:
      return 0;
  }
}

void conv_pack(const ConvProblem& p, ConvAlgorithm algorithm, void* packed) {
  switch (algorithm) {
    case ConvAlgorithm::kWinograd2:
      return winograd_pack(p, 2, packed);
    case ConvAlgorithm::kWinograd4:
      return winograd_pack(p, 4, packed);
    case ConvAlgorithm::kPointwise:
      return pointwise_pack(p, packed);
    default:
      return;
  }
}

}  // namespace fastact
