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

// F(4x4) takes 2.25 multiplications a pixel where F(2x2) takes 4, but its transformed weight
// is 2.25 times as large. A weight transformed for one call is worth that from some 1,024 pixels
// on: with 784, F(4x4) took 0.95 to 1.3 times as long, with 1,568 0.7 to 0.9 times (16 to 512
// channels). A weight that was transformed before must come from the L3 or from behind it where it
// is large: of a ResNet-18 one image took 6.9 ms with 512 channels by F(2x2), 7.7 by F(4x4), 8
// images 39 and 36 (2 threads, Zen 5).
bool pays_for_larger_tiles(const ConvProblem& p, bool packed) {
  constexpr int64_t kLeastPixels = 1024;
  constexpr int64_t kLargestWeight = 1 << 16;  // pairs of channels
  return packed ? p.out_channels * p.group_channels() <= kLargestWeight
                : p.images * p.pixels() >= kLeastPixels;
}

ConvAlgorithm winograd_of(const ConvProblem& p, Winograd setting, bool packed) {
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
  // Who computes in float64 wants digits, and F(2x2) has more of them.
  const bool may_be_larger = setting == Winograd::kFast || p.dtype != kFloat64;
  return may_be_larger && pays_for_larger_tiles(p, packed) ? ConvAlgorithm::kWinograd4
                                                           : ConvAlgorithm::kWinograd2;
}

// Whether so many pixels are worth transforming a weight for one call. With 512 channels, 49 pixels
// took 1.05 to 1.3 times as long as PyTorch's, 196 with 256 channels as long (2 threads, Zen 3). On
// a Zen 5 196 pixels took 0.34 to 0.58 times as long with 128 to 256 channels; with 512 as long,
// and 1.1 times in training, which transforms the weight twice.
bool pays_for_packing(const ConvProblem& p) {
  const int64_t pairs = p.out_channels * p.group_channels();
  const int64_t least = pairs <= 1 << 14 ? 64 : pairs <= 1 << 16 ? 192 : 256;
  return p.images * p.pixels() >= least;
}

}  // namespace

ConvAlgorithm conv_algorithm(const ConvProblem& p, Winograd setting) {
  if (depthwise_fits(p)) {
    return ConvAlgorithm::kDepthwise;
  }
  if (pointwise_fits(p)) {
    return ConvAlgorithm::kPointwise;
  }
  return pays_for_packing(p) ? winograd_of(p, setting, /*packed=*/false) : ConvAlgorithm::kNone;
}

ConvAlgorithm packed_conv_algorithm(const ConvProblem& p, Winograd setting) {
  return pointwise_fits(p) ? ConvAlgorithm::kPointwise : winograd_of(p, setting, /*packed=*/true);
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
