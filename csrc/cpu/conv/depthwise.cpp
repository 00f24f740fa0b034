// Convolutions with one channel in each group, in the layout given: a band of rows at a time.
#include <cstring>

#include "cpu/conv/engines.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace fastact {
namespace {

constexpr int64_t kMostLines = 64;         // of the input that a band meets
constexpr int64_t kPlaneBytes = 96 << 10;  // of the padded lines of a plane's part, near the L1

int64_t extent(const ConvAxis& a) { return (a.kernel - 1) * a.dilation + 1; }

DepthwiseShape shape_of(const ConvProblem& p) {
  const bool is_square = p.y.kernel == p.x.kernel && p.y.stride == p.x.stride &&
                         p.y.dilation == 1 && p.x.dilation == 1;
  if (is_square && p.x.stride <= 2 && (p.x.kernel == 3 || p.x.kernel == 5)) {
    return static_cast<DepthwiseShape>((p.x.kernel == 5 ? k5Stride1 : k3Stride1) + p.x.stride - 1);
  }
  return kAnyShape;
}

struct Engine {
  const ConvProblem& p;
  const DepthwiseKernels& kernel = kernels().conv[p.dtype].depthwise[shape_of(p)];
  const bool is_compute_type = compute_dtype(p.dtype) == p.dtype;
  const int64_t size = size_of(p.dtype);
  const int64_t compute_size = compute_size_of(p.dtype);
  const int64_t taps = p.y.kernel * p.x.kernel;

  // f(begin, end) over units of `work` multiply-adds each.
  template <class F>
  void split(int64_t units, int64_t work, const F& f) const {
    // A multiply-add of these takes as long as some of a product: memory bounds them.
    parallel_for(units, std::max<int64_t>(kParallelConv / 4 / std::max<int64_t>(work, 1), 1), f);
  }

  // Sums where they are formed: in the output itself, where that is of the compute type.
  char* place(char* memory, int64_t offset) const {
    return is_compute_type ? static_cast<char*>(p.output.data) + offset * size : memory;
  }

  void channels_last(const char* weight, const char* bias) const {
    // [tap][channel]
    Workspace<4096> by_tap(taps * p.channels * compute_size);
    kernels().gemm[compute_dtype(p.dtype)].store_transposed(weight, taps, p.channels, taps,
                                                            by_tap.get(), p.channels);
    Workspace<1024> zeros(bias ? 0 : p.channels * compute_size);
    if (!bias) {
      std::memset(zeros.get(), 0, p.channels * compute_size);
      bias = zeros.get();
    }
    const int64_t row_stride = p.x.output * p.channels;
    const int64_t bands = ceil_div(p.y.output, kernel.rows);
    const int64_t run = std::max<int64_t>(kMostTileBytes / (p.channels * compute_size), 1);
    split(p.images * bands, kernel.rows * row_stride * taps, [&](int64_t begin, int64_t end) {
      Workspace<> memory(is_compute_type ? 0 : kernel.rows * row_stride * compute_size);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t image = unit / bands;
        const int64_t row = unit % bands * kernel.rows;
        const int64_t rows = std::min(kernel.rows, p.y.output - row);
        const void* lines[kMostLines];
        for (int64_t i = 0; i < (kernel.rows - 1) * p.y.stride + p.y.kernel; ++i) {
          // Of any shape, a band is one row, and its lines are the kernel's.
          const int64_t y = row * p.y.stride - p.y.padding + i * p.y.dilation;
          lines[i] = y >= 0 && y < p.y.input
                         ? static_cast<const char*>(p.input) +
                               (image * p.y.input + y) * p.x.input * p.channels * size
                         : nullptr;
        }
        char* to = place(memory.get(), (image * p.y.output + row) * row_stride);
        kernel.band({lines, p.x.input, p.channels, p.x.padding, by_tap.get(), bias, to, row_stride,
                     rows, p.x.output, p.y.kernel, p.x.kernel, p.x.stride, p.x.dilation});
        for (int64_t pixel = 0; pixel < rows * p.x.output; pixel += run) {
          p.output.finish({to + pixel * p.channels * compute_size, p.channels, image,
                           row * p.x.output + pixel, std::min(run, rows * p.x.output - pixel), 0,
                           p.channels, false});
        }
      }
    });
  }

  void planes(const char* weight, const char* bias) const {
    const int64_t multiplier = p.group_out_channels();
    const int64_t lanes = kernel.lanes;
    DepthwisePlane plane{};
    plane.phase_stride = ceil_div(p.x.output, lanes) * lanes + ceil_div(extent(p.x), p.x.stride);
    plane.line_stride = plane.phase_stride * p.x.stride;
    plane.pixels = p.x.output;
    plane.height = p.y.input;
    plane.width = p.x.input;
    plane.padding_height = p.y.padding;
    plane.padding_width = p.x.padding;
    plane.stride_height = p.y.stride;
    plane.stride_width = p.x.stride;
    plane.kernel_height = p.y.kernel;
    plane.kernel_width = p.x.kernel;
    plane.dilation_height = p.y.dilation;
    plane.dilation_width = p.x.dilation;
    // Parts of a plane whose lines stay in cache.
    const int64_t fit = kPlaneBytes / (plane.line_stride * p.y.stride * compute_size);
    const int64_t height =
        std::clamp(fit / kernel.plane_rows * kernel.plane_rows, kernel.plane_rows,
                   ceil_div(p.y.output, kernel.plane_rows) * kernel.plane_rows);
    const int64_t parts = ceil_div(p.y.output, height);
    const int64_t lines = (height - 1) * p.y.stride + extent(p.y);
    const int64_t run = kMostTileBytes / compute_size;
    split(p.images * p.channels * parts, height * p.x.output * taps * multiplier,
          [&](int64_t begin, int64_t end) {
            Workspace<> memory(
                (lines * plane.line_stride + (is_compute_type ? 0 : height * p.x.output)) *
                compute_size);
            DepthwisePlane own = plane;
            own.lines = memory.get();
            for (int64_t unit = begin; unit < end; ++unit) {
              const int64_t input_plane = unit / parts;
              const int64_t row = unit % parts * height;
              const int64_t image = input_plane / p.channels;
              own.rows = std::min(height, p.y.output - row);
              kernel.pad(
                  own,
                  static_cast<const char*>(p.input) + input_plane * p.y.input * p.x.input * size,
                  row * p.y.stride, lines);
              for (int64_t i = 0; i < multiplier; ++i) {
                const int64_t channel = input_plane % p.channels * multiplier + i;
                own.weight = weight + channel * taps * compute_size;
                own.bias = bias ? bias + channel * compute_size : nullptr;
                const int64_t first = (image * p.out_channels + channel) * p.pixels();
                own.to = place(memory.get() + lines * plane.line_stride * compute_size,
                               first + row * p.x.output);
                kernel.plane(own);
                const int64_t pixels = own.rows * p.x.output;
                for (int64_t pixel = 0; pixel < pixels; pixel += run) {
                  const int64_t count = std::min(run, pixels - pixel);
                  p.output.finish({static_cast<char*>(own.to) + pixel * compute_size, count, image,
                                   row * p.x.output + pixel, count, channel, 1, true});
                }
              }
            }
          });
  }
};

// Where PyTorch's takes as long or less, with one thread and two of a Zen 3. Planes: it takes 1.2
// to 6 times as long along lines, 1.6 to 3 times for 3x3 of stride 1, 2.1 to 5 times where there
// are several outputs for a channel or no whole vectors of channels, but 0.4 to 0.9 times for 5x5
// of stride 2 and 0.2 to 0.8 times for 7x7. Channels last: 1.5 to 2.2 times for 3x3 and 5x5, 0.9
// to 1.2 times for others. Anywhere for little work, where the call is what costs.
bool is_slower(const ConvProblem& p) {
  constexpr int64_t kLittleWork = 1 << 17;  // multiply-adds
  constexpr int64_t kVectorOfChannels = 8;
  if (p.images * p.out_channels * p.pixels() * p.y.kernel * p.x.kernel <= kLittleWork) {
    return false;
  }
  const DepthwiseShape shape = shape_of(p);
  if (p.channels_last()) {
    return shape == kAnyShape;
  }
  return shape != k3Stride1 && p.y.input > 1 && p.out_channels == p.channels &&
         p.channels % kVectorOfChannels == 0;
}

}  // namespace

bool depthwise_fits(const ConvProblem& p) {
  if (p.group_channels() != 1 || p.groups == 1 || is_slower(p)) {
    return false;
  }
  if (!p.channels_last()) {
    return true;
  }
  const int64_t rows = kernels().conv[p.dtype].depthwise[shape_of(p)].rows;
  return p.out_channels == p.channels && (rows - 1) * p.y.stride + p.y.kernel <= kMostLines &&
         p.channels * compute_size_of(p.dtype) <= kMostTileBytes;
}

void depthwise_conv(const ConvProblem& p) {
  const Engine engine{p};
  const int64_t elements = p.out_channels * engine.taps;
  Workspace<4096> wide(engine.is_compute_type ? 0 : elements * engine.compute_size);
  const char* weight = static_cast<const char*>(p.weight);
  if (!engine.is_compute_type) {
    kernels().gemm[p.dtype].widen(p.weight, wide.get(), elements);
    weight = wide.get();
  }
  const char* bias = static_cast<const char*>(p.bias);
  p.channels_last() ? engine.channels_last(weight, bias) : engine.planes(weight, bias);
}

}  // namespace fastact
