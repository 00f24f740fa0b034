#include "cpu/conv/engines.h"
#include "cpu/parallel.h"

namespace fastact {
namespace {

template <class T>
void turn(const T* from, bool channels_last, int64_t groups, int64_t out_channels, int64_t channels,
          int64_t taps, T* to) {
  const int64_t tap_stride = channels_last ? channels : 1;
  const int64_t channel_stride = channels_last ? 1 : taps;
  const int64_t row = out_channels * taps;
  parallel_for(
      groups * channels, std::max<int64_t>((1 << 15) / row, 1), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T* first =
              from + i / channels * out_channels * channels * taps + i % channels * channel_stride;
          for (int64_t k = 0; k < out_channels; ++k) {
            const T* own = first + k * channels * taps;
            for (int64_t tap = 0; tap < taps; ++tap) {
              to[i * row + k * taps + tap] = own[(taps - 1 - tap) * tap_stride];
            }
          }
        }
      });
}

}  // namespace

void to_channels_last(Dtype dtype, const void* from_, int64_t images, int64_t channels,
                      int64_t pixels, void* to_) {
  constexpr int64_t kBlock = 64;  // pixels, and channels, at a time
  const GemmKernels& g = kernels().gemm[dtype];
  const int64_t size = size_of(dtype);
  const bool widens = size < compute_size_of(dtype);
  const char* from = static_cast<const char*>(from_);
  char* to = static_cast<char*>(to_);
  const int64_t blocks = ceil_div(pixels, kBlock);
  const int64_t grain = std::max<int64_t>((1 << 15) / (kBlock * channels), 1);
  parallel_for(images * blocks, grain, [&](int64_t begin, int64_t end) {
    alignas(64) char wide[kBlock * kBlock * sizeof(float)];
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / blocks;
      const int64_t pixel = unit % blocks * kBlock;
      const int64_t columns = std::min(kBlock, pixels - pixel);
      for (int64_t channel = 0; channel < channels; channel += kBlock) {
        const int64_t rows = std::min(kBlock, channels - channel);
        const char* tile = from + ((image * channels + channel) * pixels + pixel) * size;
        int64_t stride = pixels;
        if (widens) {
          for (int64_t i = 0; i < rows; ++i) {
            g.widen(tile + i * pixels * size, wide + i * kBlock * sizeof(float), columns);
          }
          tile = wide;
          stride = kBlock;
        }
        g.store_transposed(tile, stride, rows, columns,
                           to + ((image * pixels + pixel) * channels + channel) * size, channels);
      }
    }
  });
}

void turn_weight(Dtype dtype, const void* from, bool channels_last, int64_t groups,
                 int64_t out_channels, int64_t channels, int64_t taps, void* to) {
  if (taps == 1) {
    return to_channels_last(dtype, from, groups, out_channels, channels, to);
  }
  const auto run = [&](auto number) {
    using T = decltype(number);
    turn(static_cast<const T*>(from), channels_last, groups, out_channels, channels, taps,
         static_cast<T*>(to));
  };
  switch (size_of(dtype)) {
    case 2:
      return run(uint16_t());
    case 4:
      return run(uint32_t());
    default:
      return run(uint64_t());
  }
}

}  // namespace fastact
