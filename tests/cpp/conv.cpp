// Do the pieces of a convolution (Winograd's transforms, depthwise bands and planes) of each
// instruction set compute what the definition says, and keep to their memory? Numbers are small
// integers, whose sums are exact; F(4x4) has irrational points, and an error.
#include "cpu/kernels/conv_table.h"
#include "kernels.h"

FASTACT_TEST_KERNELS(ConvKernels, conv)

using namespace fastact;
using namespace fastact_test;

namespace {

const ConvKernels* const* kernels;

template <class T>
const ConvKernels& kernels_of() {
  return *kernels[kDtypeOf<T>];
}

template <class T>
int64_t lanes_of() {
  return kernels_of<T>().depthwise[kAnyShape].lanes;
}

std::size_t at(int64_t i) { return static_cast<std::size_t>(i); }

template <class T>
void fill_integers(Walled<T>& memory, Random& random, int64_t most = 3) {
  for (T& x : memory) x = rounded<T>(static_cast<double>(random.integer(-most, most)));
}

// ---- Winograd ----------------------------------------------------------------------------------

// A line of tiles by the three transforms and plain products against the definition, one bias for
// each of `columns` output channels.
template <class T>
void check_winograd(int m, int64_t channels, int64_t columns, int64_t tiles, Place place,
                    Random& random) {
  using C = compute_t<T>;
  const WinogradKernels& of_inputs = m == 2 ? kernels_of<T>().winograd2 : kernels_of<T>().winograd4;
  // Weights and sums have the compute type.
  const WinogradKernels& w = m == 2 ? kernels_of<C>().winograd2 : kernels_of<C>().winograd4;
  const int64_t a = m + 2, points = a * a, width = tiles * m + 2;
  Walled<T> image(at(a * width * channels), place);
  fill_integers(image, random);

  const int64_t step = channels + 3;
  std::vector<Walled<C>> values;
  for (int64_t t = 0; t < tiles; ++t) {
    std::vector<const void*> pixels;
    for (int64_t i = 0; i < a; ++i) {
      for (int64_t j = 0; j < a; ++j) {
        pixels.push_back(image.data() + (i * width + t * m + j) * channels);
      }
    }
    values.emplace_back(at((points - 1) * step + channels), place);
    of_inputs.input(pixels.data(), channels, values.back().data(), step);
  }

  // [tap][channel][column], with gaps.
  const int64_t row = columns + 5, tap_stride = channels * row;
  Walled<C> weight(at(8 * tap_stride + (channels - 1) * row + columns), place);
  fill_integers(weight, random);
  const int64_t value_stride = columns + 2, point_stride = channels * value_stride;
  Walled<C> transformed(at((points - 1) * point_stride + (channels - 1) * value_stride + columns),
                        place);
  w.weights(weight.data(), tap_stride, row, channels, columns, transformed.data(), point_stride,
            value_stride);

  const int64_t sum_stride = tiles * columns + 7;
  Walled<C> sums(at((points - 1) * sum_stride + tiles * columns), place);
  for (int64_t p = 0; p < points; ++p) {
    for (int64_t t = 0; t < tiles; ++t) {
      for (int64_t k = 0; k < columns; ++k) {
        double sum = 0;
        for (int64_t c = 0; c < channels; ++c) {
          sum += double(values[at(t)][at(p * step + c)]) *
                 double(transformed[at(p * point_stride + c * value_stride + k)]);
        }
        sums[at(p * sum_stride + t * columns + k)] = static_cast<C>(sum);
      }
    }
  }

  Walled<C> bias(at(columns), place);
  fill_integers(bias, random);
  const int64_t row_stride = tiles * m * columns + 1;
  Walled<C> results(at((m - 1) * row_stride + tiles * m * columns), place);
  CHECK(w.output(sums.data(), sum_stride, columns, tiles, columns, bias.data(), results.data(),
                 row_stride));
  // Numbers up to 3 times 3, 9 taps; of F(4x4) the numbers between are some ten times as large.
  const double error = m == 2 ? 0.0 : 1000 * kEpsilon<C> * std::sqrt(static_cast<double>(channels));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < tiles * m; ++j) {
      for (int64_t k = 0; k < columns; ++k) {
        double expected = bias[at(k)];
        for (int64_t tap = 0; tap < 9; ++tap) {
          for (int64_t c = 0; c < channels; ++c) {
            const int64_t pixel = (i + tap / 3) * width + j + tap % 3;
            expected += value_of(image[at(pixel * channels + c)]) *
                        double(weight[at(tap * tap_stride + c * row + k)]);
          }
        }
        CHECK_NEAR(double(results[at(i * row_stride + j * columns + k)]), expected, error);
      }
    }
  }

  // One number that is not finite is told of, wherever it is.
  for (const double bad : {double(INFINITY), -double(INFINITY), double(NAN)}) {
    C& one = sums[at(random.integer(0, tiles * columns - 1))];
    const C before = one;
    one = static_cast<C>(bad);
    CHECK(!w.output(sums.data(), sum_stride, columns, tiles, columns, bias.data(), results.data(),
                    row_stride));
    one = before;
  }
}

}  // namespace

FASTACT_TEST(winograd) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    Random random;
    const int64_t lanes = lanes_of<T>();
    for (const int m : {2, 4}) {
      for (const int64_t channels : {int64_t{1}, lanes - 1, lanes, 2 * lanes + 3}) {
        if (channels == 0) continue;
        for (const int64_t columns : {lanes, 3 * lanes}) {
          for (const int64_t tiles : {1, 3}) {
            for (const Place place : {Place::kBeforeTheWall, Place::kBehindTheWall}) {
              const Context context("F(%d), %ld to %ld channels, %ld tiles", m, long(channels),
                                    long(columns), long(tiles));
              check_winograd<T>(m, channels, columns, tiles, place, random);
            }
          }
        }
      }
    }
  });
}

// ---- depthwise ---------------------------------------------------------------------------------

namespace {

struct Shape {
  DepthwiseShape kind;
  int64_t height, width, stride, dilation;
};
constexpr Shape kShapes[] = {
    {k3Stride1, 3, 3, 1, 1}, {k3Stride2, 3, 3, 2, 1}, {k5Stride1, 5, 5, 1, 1},
    {k5Stride2, 5, 5, 2, 1}, {kAnyShape, 2, 4, 3, 1}, {kAnyShape, 3, 2, 1, 3},
    {kAnyShape, 1, 7, 2, 2}, {kAnyShape, 4, 1, 1, 1},
};

// The output's size along a dimension.
int64_t size_of_output(int64_t input, int64_t kernel, int64_t stride, int64_t padding,
                       int64_t dilation) {
  return (input + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

// Zero outside of the image.
template <class T>
double pixel_of(const Walled<T>& image, int64_t height, int64_t width, int64_t y, int64_t x,
                int64_t channels, int64_t c) {
  const bool inside = y >= 0 && y < height && x >= 0 && x < width;
  return inside ? value_of(image[at((y * width + x) * channels + c)]) : 0.0;
}

// Channels last: every band of an image.
template <class T>
void check_bands(const Shape& s, int64_t width, int64_t padding, int64_t channels, Place place,
                 Random& random) {
  using C = compute_t<T>;
  const DepthwiseKernels& kernel = kernels_of<T>().depthwise[s.kind];
  const int64_t input_rows = 2 * kernel.rows * s.stride + s.height * s.dilation;
  const int64_t pixels = size_of_output(width, s.width, s.stride, padding, s.dilation);
  const int64_t rows = size_of_output(input_rows, s.height, s.stride, padding, s.dilation);
  if (pixels < 1) return;
  Walled<T> image(at(input_rows * width * channels), place);
  Walled<C> weight(at(s.height * s.width * channels), place), bias(at(channels), place);
  fill_integers(image, random);
  fill_integers(weight, random);
  fill_integers(bias, random);
  for (int64_t first = 0; first < rows; first += kernel.rows) {
    const int64_t count = std::min(kernel.rows, rows - first);
    std::vector<const void*> lines;
    for (int64_t i = 0; i < (kernel.rows - 1) * s.stride + s.height; ++i) {
      const int64_t y = first * s.stride - padding + i * s.dilation;
      const bool inside = y >= 0 && y < input_rows;
      lines.push_back(inside ? image.data() + y * width * channels : nullptr);
    }
    const int64_t row_stride = pixels * channels + 2;
    Walled<C> to(at((count - 1) * row_stride + pixels * channels), place);
    kernel.band({lines.data(), width, channels, padding, weight.data(), bias.data(), to.data(),
                 row_stride, count, pixels, s.height, s.width, s.stride, s.dilation});
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < pixels; ++j) {
        for (int64_t c = 0; c < channels; ++c) {
          double expected = bias[at(c)];
          for (int64_t tap = 0; tap < s.height * s.width; ++tap) {
            const int64_t y = (first + i) * s.stride - padding + tap / s.width * s.dilation;
            const int64_t x = j * s.stride - padding + tap % s.width * s.dilation;
            expected += pixel_of(image, input_rows, width, y, x, channels, c) *
                        double(weight[at(tap * channels + c)]);
          }
          CHECK_SAME(double(to[at(i * row_stride + j * channels + c)]), expected);
        }
      }
    }
  }
}

// One plane, in two parts.
template <class T>
void check_planes(const Shape& s, int64_t height, int64_t width, int64_t padding, bool has_bias,
                  Place place, Random& random) {
  using C = compute_t<T>;
  const DepthwiseKernels& kernel = kernels_of<T>().depthwise[s.kind];
  const int64_t rows = size_of_output(height, s.height, s.stride, padding, s.dilation);
  const int64_t pixels = size_of_output(width, s.width, s.stride, padding, s.dilation);
  if (rows < 1 || pixels < 1) return;
  Walled<T> image(at(height * width), place);
  Walled<C> weight(at(s.height * s.width), place), bias(1, place);
  fill_integers(image, random);
  fill_integers(weight, random);
  fill_integers(bias, random);
  const int64_t extent_y = (s.height - 1) * s.dilation + 1;
  const int64_t extent_x = (s.width - 1) * s.dilation + 1;
  const int64_t phase =
      ceil_div(pixels, kernel.lanes) * kernel.lanes + ceil_div(extent_x, s.stride);
  for (int64_t first = 0; first < rows; first += kernel.plane_rows) {
    const int64_t count = std::min(kernel.plane_rows, rows - first);
    const int64_t lines = (kernel.plane_rows - 1) * s.stride + extent_y;
    Walled<C> padded(at(lines * phase * s.stride), place), to(at(count * pixels), place);
    const DepthwisePlane plane{padded.data(),
                               phase * s.stride,
                               phase,
                               weight.data(),
                               has_bias ? bias.data() : nullptr,
                               to.data(),
                               count,
                               pixels,
                               height,
                               width,
                               padding,
                               padding,
                               s.stride,
                               s.stride,
                               s.height,
                               s.width,
                               s.dilation,
                               s.dilation};
    kernel.pad(plane, image.data(), first * s.stride, lines);
    kernel.plane(plane);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < pixels; ++j) {
        double expected = has_bias ? double(bias[0]) : 0.0;
        for (int64_t tap = 0; tap < s.height * s.width; ++tap) {
          const int64_t y = (first + i) * s.stride - padding + tap / s.width * s.dilation;
          const int64_t x = j * s.stride - padding + tap % s.width * s.dilation;
          expected += pixel_of(image, height, width, y, x, 1, 0) * double(weight[at(tap)]);
        }
        CHECK_SAME(double(to[at(i * pixels + j)]), expected);
      }
    }
  }
}

}  // namespace

FASTACT_TEST(depthwise_bands) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    Random random;
    const int64_t lanes = lanes_of<T>();
    for (const Shape& s : kShapes) {
      for (const int64_t width : {1, 4, 9, 14}) {
        for (const int64_t padding : {0, 1, 2}) {
          for (const int64_t channels : {int64_t{1}, lanes, 2 * lanes + 1}) {
            for (const Place place : {Place::kBeforeTheWall, Place::kBehindTheWall}) {
              const Context context("%ldx%ld, stride %ld, dilation %ld, width %ld, padding %ld",
                                    long(s.height), long(s.width), long(s.stride), long(s.dilation),
                                    long(width), long(padding));
              check_bands<T>(s, width, padding, channels, place, random);
            }
          }
        }
      }
    }
  });
}

FASTACT_TEST(depthwise_planes) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    Random random;
    const int64_t lanes = lanes_of<T>();
    for (const Shape& s : kShapes) {
      for (const int64_t height : {1, 5, 19}) {
        for (const int64_t width : {int64_t{1}, lanes, 2 * lanes + 5}) {
          for (const int64_t padding : {0, 1, 2, 5}) {
            for (const Place place : {Place::kBeforeTheWall, Place::kBehindTheWall}) {
              const Context context("%ldx%ld, stride %ld, dilation %ld, %ldx%ld, padding %ld",
                                    long(s.height), long(s.width), long(s.stride), long(s.dilation),
                                    long(height), long(width), long(padding));
              check_planes<T>(s, height, width, padding, padding != 1, place, random);
            }
          }
        }
      }
    }
  });
}

int main(int count, char** arguments) { return run_with(all_tables, kernels, count, arguments); }
