// Convolutions with kernels of one pixel: matrix products of pixels by channels, or, where images
// lie channel by channel, of channels by pixels.
#include <cstring>

#include "cpu/conv/engines.h"
#include "cpu/gemm/gemm.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace fastact {
namespace {

GemmOperand weight_columns(const ConvProblem& p) { return {p.weight, 1, p.channels}; }

// The pixels that a stride leaves, laid out as the input.
void take_pixels(const ConvProblem& p, char* to) {
  const int64_t size = size_of(p.dtype);
  const int64_t inner = (p.channels_last() ? p.channels : 1) * size;
  const int64_t planes = p.images * (p.channels_last() ? 1 : p.channels);
  const int64_t rows = planes * p.y.output;
  parallel_for(rows, std::max<int64_t>((1 << 17) / (p.x.output * inner), 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t line =
                       row / p.y.output * p.y.input + row % p.y.output * p.y.stride;
                   const char* from = static_cast<const char*>(p.input) + line * p.x.input * inner;
                   char* own = to + row * p.x.output * inner;
                   for (int64_t i = 0; i < p.x.output; ++i) {
                     std::memcpy(own + i * inner, from + i * p.x.stride * inner, inner);
                   }
                 }
               });
}

void multiply(const ConvProblem& p, const void* input) {
  GemmEpilogue epilogue;
  epilogue.bias = p.bias;
  epilogue.channels = ConvOutput::channels_along(p.channels_last());
  epilogue.stages = p.output.stages;
  const int64_t pixels = p.pixels();
  if (p.channels_last()) {
    return gemm({p.dtype,
                 p.images * pixels,
                 p.out_channels,
                 p.channels,
                 {input, p.channels, 1},
                 weight_columns(p),
                 p.packed,
                 p.output.data,
                 p.out_channels,
                 epilogue});
  }
  const auto image = [&](int64_t i) {
    const char* own = static_cast<const char*>(input) + i * p.channels * pixels * size_of(p.dtype);
    gemm({p.dtype,
          p.out_channels,
          pixels,
          p.channels,
          {p.weight, p.channels, 1},
          {own, pixels, 1},
          nullptr,
          p.output.data,
          pixels,
          epilogue,
          i * p.out_channels * pixels});
  };
  // Threads share images, or each image.
  if (p.images >= 2 * at::get_num_threads()) {
    const int64_t work = p.out_channels * pixels * p.channels;
    return parallel_for(p.images, std::max<int64_t>(kParallelConv / work, 1),
                        [&](int64_t begin, int64_t end) {
                          for (int64_t i = begin; i < end; ++i) {
                            image(i);
                          }
                        });
  }
  for (int64_t i = 0; i < p.images; ++i) {
    image(i);
  }
}

}  // namespace

bool pointwise_fits(const ConvProblem& p) {
  const auto is_single = [](const ConvAxis& a) { return a.kernel == 1 && a.padding == 0; };
  return p.groups == 1 && is_single(p.y) && is_single(p.x);
}

void pointwise_conv(const ConvProblem& p) {
  if (p.y.stride == 1 && p.x.stride == 1) {
    return multiply(p, p.input);
  }
  Workspace<> taken(p.images * p.channels * p.pixels() * size_of(p.dtype));
  take_pixels(p, taken.get());
  multiply(p, taken.get());
}

int64_t pointwise_packed_bytes(const ConvProblem& p) {
  return gemm_packed_bytes(p.dtype, p.channels, p.out_channels);
}

void pointwise_pack(const ConvProblem& p, void* packed) {
  gemm_pack(p.dtype, p.channels, p.out_channels, weight_columns(p), packed);
}

}  // namespace fastact
