// Convolutions on strided memory: chooses an algorithm by shape, layout and dtype, splits over
// threads, finishes each tile while it is in cache. Knows no tensors.
#pragma once

#include "cpu/conv/output.h"

namespace fastact {

// Which of Winograd's algorithms 3x3 convolutions may use: none; those whose error stays within
// twice that of PyTorch's convolution + 1e-6 of the result (root mean square; docs/conv.md): in
// float64 F(2x2, 3x3) alone; those that are fastest.
enum class Winograd { kOff, kSafe, kFast };

// Along one dimension of an image.
struct ConvAxis {
  int64_t input;  // elements
  int64_t output;
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

// Images of two dimensions; those of one have a height of 1. The input lies as the output does:
// [images][y][x][channels] or [images][channels][y][x], dense. The weight is
// [out channels][y][x][channels of a group] or [out channels][channels of a group][y][x].
struct ConvProblem {
  Dtype dtype;
  int64_t images;
  int64_t channels;
  int64_t out_channels;
  int64_t groups;
  ConvAxis y;
  ConvAxis x;
  const void* input;
  const void* weight;
  bool weight_channels_last;
  const void* packed;  // by conv_pack() with the same algorithm, or null
  const void* bias;    // of the compute type, or null
  ConvOutput output;

  int64_t group_channels() const { return channels / groups; }
  int64_t group_out_channels() const { return out_channels / groups; }
  int64_t pixels() const { return y.output * x.output; }
  bool channels_last() const { return output.channels_last; }
};

// How a convolution is computed.
enum class ConvAlgorithm {
  kNone,       // not here: PyTorch's is as fast, or there is none for the shape
  kWinograd2,  // F(2x2, 3x3)
  kWinograd4,  // F(4x4, 3x3)
  kDepthwise,
  kPointwise,  // a matrix product
};
ConvAlgorithm conv_algorithm(const ConvProblem& problem, Winograd setting);
// False where the output must be computed by another algorithm: a sum of Winograd's is not finite.
// They are differences, so an infinity makes NaN of them, with F(4x4) of neighbours too, and
// numbers near the largest may overflow on the way.
[[nodiscard]] bool conv(const ConvProblem& problem, ConvAlgorithm algorithm);

// The algorithm for which a weight is packed ahead, whatever the size and layout of images; kNone
// where that gains nothing.
ConvAlgorithm packed_conv_algorithm(const ConvProblem& problem, Winograd setting);
// The weight as the algorithm reads it; the problem's input, output and bias are not used.
int64_t conv_packed_bytes(const ConvProblem& problem, ConvAlgorithm algorithm);
void conv_pack(const ConvProblem& problem, ConvAlgorithm algorithm, void* packed);

// The weight whose convolution gives the input's gradient: the channels of each group change
// places, and the taps are in reverse. `from` is [groups * out_channels] of [channels][taps], or
// channels last of [taps][channels]; `to` is [groups * channels][out_channels][taps].
void turn_weight(Dtype dtype, const void* from, bool channels_last, int64_t groups,
                 int64_t out_channels, int64_t channels, int64_t taps, void* to);

}  // namespace fastact
