// 3x3 convolutions of stride 1 by Winograd's F(M x M, 3x3): tiles are transformed, multiplied by
// the transformed weight as matrices over channels, and transformed back, some tiles at a time, so
// that they stay in cache.
#include <atomic>
#include <cstring>

#include "cpu/conv/engines.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace fastact {
namespace {

// Tiles taken together: 48 of F(2), 24 of F(4) were within 3 % of the best wherever there are 56 to
// 14 pixels along a side (Zen 4): they read the transformed weight that much less often, and their
// values stay in the L2. A weight of 512 x 512 channels comes from the L3 or from behind it: there
// 64 of F(2) took 10.2 ms, 48 12.6 and 32 14.8 (4x512x7, one thread of a Zen 3), and four times as
// many were the best on a Zen 4.
constexpr int64_t kTogether = 96;  // divided by M
constexpr int64_t kTogetherBesideLargeWeights = 384;
constexpr int64_t kLargeWeight = int64_t{12} << 20;  // bytes, transformed
constexpr int64_t kChannelsPacked = 32;              // at a time
// Channels whose products F(4) adds in one chain. Nearly all of its error comes from these sums,
// whose terms cancel in the output's transform: in chains of 128 the error is 1.5e-6 of the result
// (root mean square, 128 channels, positive weights), in chains of 32 8.8e-7, of 16 7.8e-7. They
// cost 6 % and 14 % of the time (4x128x28, Zen 5).
constexpr int64_t kChain4 = 32;
constexpr int64_t kMaxPoints = 36;
constexpr int64_t kLine = 64;  // bytes

struct Engine {
  const ConvProblem& p;
  int m;
  Dtype compute = compute_dtype(p.dtype);
  const GemmKernels& g = kernels().gemm[compute];
  const WinogradKernels& w =
      m == 2 ? kernels().conv[p.dtype].winograd2 : kernels().conv[p.dtype].winograd4;
  // Of the weights: they are in the compute type when they are transformed.
  const WinogradKernels& compute_w =
      m == 2 ? kernels().conv[compute].winograd2 : kernels().conv[compute].winograd4;
  int64_t points = (m + 2) * (m + 2);
  int64_t size = size_of(p.dtype);
  int64_t compute_size = compute_size_of(p.dtype);
  int64_t channels = p.group_channels();
  int64_t out_channels = p.group_out_channels();
  int64_t panels = ceil_div(out_channels, g.panel);
  int64_t panel_bytes = g.panel * compute_size;  // of one channel and point
  int64_t point_bytes = channels * panel_bytes;  // of one panel
  int64_t group_bytes = panels * points * point_bytes;

  Engine(const ConvProblem& problem, int tile) : p(problem), m(tile) {}

  int64_t packed_bytes() const { return p.groups * group_bytes; }

  int64_t columns_of(int64_t panel) const {
    return std::min(g.panel, out_channels - panel * g.panel);
  }
  int64_t whole_registers(int64_t columns) const { return ceil_div(columns, g.lanes) * g.lanes; }

  // The weight, in the compute type, as [group][panel][point][channel][out channels of a panel].
  void pack(const void* weight, char* to) const {
    const int64_t parts = ceil_div(channels, kChannelsPacked);
    const int64_t work = 9 * kChannelsPacked * g.panel;
    parallel_for(p.groups * panels * parts, std::max<int64_t>(kParallelConv / 8 / work, 1),
                 [&](int64_t begin, int64_t end) {
                   Workspace<> rows(9 * kChannelsPacked * panel_bytes);
                   for (int64_t i = begin; i < end; ++i) {
                     pack_part(static_cast<const char*>(weight), i / parts / panels,
                               i / parts % panels, i % parts * kChannelsPacked, rows.get(), to);
                   }
                 });
  }

  void pack_part(const char* weight, int64_t group, int64_t panel, int64_t channel, char* rows,
                 char* to) const {
    const int64_t count = std::min(kChannelsPacked, channels - channel);
    const int64_t columns = columns_of(panel);
    const int64_t depth = 9 * channels;
    const char* first = weight + (group * out_channels + panel * g.panel) * depth * compute_size;
    int64_t tap_stride = g.panel;
    int64_t channel_stride = 9 * g.panel;
    if (p.weight_channels_last) {
      tap_stride = count * g.panel;
      channel_stride = g.panel;
      for (int64_t tap = 0; tap < 9; ++tap) {
        g.pack_panels(first + (tap * channels + channel) * compute_size, 1, depth, count, columns,
                      0, 1, rows + tap * count * panel_bytes);
      }
    } else {
      g.pack_panels(first + channel * 9 * compute_size, 1, depth, 9 * count, columns, 0, 1, rows);
    }
    compute_w.weights(
        rows, tap_stride, channel_stride, count, whole_registers(columns),
        to + group * group_bytes + panel * points * point_bytes + channel * panel_bytes,
        channels * g.panel, g.panel);
  }

  int64_t across = ceil_div(p.x.output, m);
  int64_t down = ceil_div(p.y.output, m);
  int64_t tiles = p.images * across * down;

  // Memory of one thread.
  struct Buffers {
    int64_t value_step;  // elements between points; a cache line more than a power of two apart
    int64_t sum_step;
    char* values;
    char* sums;
    char* output;
  };

  // Tiles [first, first + count) of a group: their transforms.
  void transform_input(const char* input, int64_t pixel_stride, const char* zeros, int64_t first,
                       int64_t count, const Buffers& b) const {
    const int64_t a = m + 2;
    const void* pixels[kMaxPoints];
    for (int64_t t = 0; t < count; ++t) {
      const int64_t tile = first + t;
      const int64_t image = tile / (across * down);
      const int64_t top = tile / across % down * m - p.y.padding;
      const int64_t left = tile % across * m - p.x.padding;
      for (int64_t i = 0; i < a; ++i) {
        const int64_t y = top + i;
        const bool row_inside = y >= 0 && y < p.y.input;
        const char* row = input + (image * p.y.input + y) * p.x.input * pixel_stride;
        for (int64_t j = 0; j < a; ++j) {
          const int64_t x = left + j;
          pixels[i * a + j] =
              row_inside && x >= 0 && x < p.x.input ? row + x * pixel_stride : zeros;
        }
      }
      w.input(pixels, channels, b.values + t * channels * compute_size, b.value_step);
    }
  }

  void multiply(const char* packed, int64_t columns, int64_t count, const Buffers& b) const {
    const int64_t chain = m == 4 ? kChain4 : channels;
    for (int64_t point = 0; point < points; ++point) {
      for (int64_t c = 0; c < channels; c += chain) {
        g.tile({b.values + (point * b.value_step + c) * compute_size, channels * compute_size,
                packed + point * point_bytes + c * panel_bytes, panel_bytes,
                std::min(chain, channels - c), count, static_cast<int>(columns), nullptr, false,
                /*accumulate=*/c > 0, b.sums + point * b.sum_step * compute_size,
                whole_registers(columns), nullptr, 0});
      }
    }
  }

  // The output pixels of the tiles, a run of them in one line of tiles at a time. False where a sum
  // is not finite.
  bool transform_output(const char* bias, int64_t channel, int64_t columns, int64_t first,
                        int64_t count, const Buffers& b) const {
    const int64_t width = whole_registers(columns);
    bool finite = true;
    for (int64_t t = 0; t < count;) {
      const int64_t tile = first + t;
      const int64_t run = std::min(count - t, across - tile % across);
      const int64_t row_stride = run * m * width;
      finite &= w.output(b.sums + t * width * compute_size, b.sum_step, width, run, width, bias,
                         b.output, row_stride);
      const int64_t image = tile / (across * down);
      const int64_t top = tile / across % down * m;
      const int64_t left = tile % across * m;
      const int64_t pixels = std::min(run * m, p.x.output - left);
      for (int64_t i = 0; i < m && top + i < p.y.output; ++i) {
        p.output.finish({b.output + i * row_stride * compute_size, width, image,
                         (top + i) * p.x.output + left, pixels, channel, columns, false});
      }
      t += run;
    }
    return finite;
  }

  bool run(const char* packed, const char* input) const {
    const int64_t threads = at::get_num_threads();
    // Equal groups of tiles, as many for every thread; where there are fewer, threads share them by
    // panels, and each transforms the tiles for itself.
    const int64_t most = group_bytes > kLargeWeight ? kTogetherBesideLargeWeights : kTogether;
    int64_t blocks = ceil_div(tiles, most / m);
    if (blocks > 1 && blocks < 8 * threads) {
      blocks = std::min(ceil_div(blocks, threads) * threads, tiles);
    }
    const int64_t together = ceil_div(tiles, blocks);
    blocks = ceil_div(tiles, together);
    const int64_t shares = std::min(panels, ceil_div(threads, blocks * p.groups));
    const int64_t own_panels = ceil_div(panels, shares);
    const int64_t work = together * points * channels * own_panels * g.panel;
    const int64_t pixel_stride = p.channels * size;

    const int64_t value_step = together * channels + kLine / compute_size;
    const int64_t sum_step = together * g.panel + kLine / compute_size;
    const int64_t values_bytes = points * value_step * compute_size;
    const int64_t sums_bytes = points * sum_step * compute_size;
    const int64_t output_bytes = m * m * together * g.panel * compute_size;
    const int64_t zeros_bytes = channels * size;
    const auto aligned = [](int64_t bytes) { return ceil_div(bytes, kLine) * kLine; };

    std::atomic<bool> finite = true;
    parallel_for(
        blocks * p.groups * shares, std::max<int64_t>(kParallelConv / work, 1),
        [&](int64_t begin, int64_t end) {
          Workspace<> memory(aligned(values_bytes) + aligned(sums_bytes) + aligned(output_bytes) +
                             aligned(zeros_bytes) + panel_bytes);
          Buffers b{value_step, sum_step, memory.get(), nullptr, nullptr};
          b.sums = b.values + aligned(values_bytes);
          b.output = b.sums + aligned(sums_bytes);
          char* zeros = b.output + aligned(output_bytes);
          char* bias = zeros + aligned(zeros_bytes);
          std::memset(zeros, 0, zeros_bytes);
          for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit / shares % p.groups;
            const int64_t first = unit / shares / p.groups * together;
            const int64_t count = std::min(together, tiles - first);
            transform_input(input + group * channels * size, pixel_stride, zeros, first, count, b);
            const int64_t panel = unit % shares * own_panels;
            for (int64_t i = panel; i < std::min(panels, panel + own_panels); ++i) {
              const int64_t columns = columns_of(i);
              const int64_t channel = group * out_channels + i * g.panel;
              multiply(packed + group * group_bytes + i * points * point_bytes, columns, count, b);
              std::memset(bias, 0, panel_bytes);
              if (p.bias) {
                std::memcpy(bias, static_cast<const char*>(p.bias) + channel * compute_size,
                            columns * compute_size);
              }
              if (!transform_output(bias, channel, columns, first, count, b)) {
                finite.store(false, std::memory_order_relaxed);
              }
            }
          }
        });
    return finite;
  }
};

}  // namespace

int64_t winograd_packed_bytes(const ConvProblem& p, int m) { return Engine(p, m).packed_bytes(); }

void winograd_pack(const ConvProblem& p, int m, void* packed) {
  const Engine engine(p, m);
  const int64_t elements = p.out_channels * p.group_channels() * 9;
  const bool widens = p.dtype != engine.compute;
  Workspace<> wide(widens ? elements * engine.compute_size : 0);
  if (widens) {
    kernels().gemm[p.dtype].widen(p.weight, wide.get(), elements);
  }
  engine.pack(widens ? wide.get() : p.weight, static_cast<char*>(packed));
}

bool winograd_conv(const ConvProblem& p, int m) {
  const Engine engine(p, m);
  Workspace<> own(p.packed ? 0 : engine.packed_bytes());
  if (!p.packed) {
    winograd_pack(p, m, own.get());
  }
  const char* packed = static_cast<const char*>(p.packed ? p.packed : own.get());
  if (p.channels_last()) {
    return engine.run(packed, static_cast<const char*>(p.input));
  }
  const int64_t pixels = p.y.input * p.x.input;
  Workspace<> turned(p.images * pixels * p.channels * engine.size);
  to_channels_last(p.dtype, p.input, p.images, p.channels, pixels, turned.get());
  return engine.run(packed, turned.get());
}

}  // namespace fastact
