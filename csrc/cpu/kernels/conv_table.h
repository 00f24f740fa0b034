// The tables of convolution kernels, as kernel_table.h has those of the other families. Every
// number is of the compute type but where the dtype is said.
#pragma once

#include "cpu/kernels/kernel_table.h"

namespace fastact {

// The transforms of Winograd's F(M x M, 3x3): A = M + 2 points along each dimension.
struct WinogradKernels {
  // The A * A pixels of one tile, each a pointer to `channels` numbers of the dtype, into
  // values[point * step + channel].
  void (*input)(const void* const* pixels, int64_t channels, void* values, int64_t step);
  // Rows of `columns` neighbouring output channels for each of the 9 taps and each input channel
  // into such rows for each point and input channel. Strides in elements; whole registers.
  void (*weights)(const void* rows, int64_t tap_stride, int64_t channel_stride, int64_t channels,
                  int64_t columns, void* values, int64_t point_stride, int64_t value_stride);
  // sums[point][tile][columns] of neighbouring tiles into values[row][pixel][columns] with the bias
  // added: M rows of tiles * M pixels. False where one of them is not finite.
  bool (*output)(const void* sums, int64_t point_stride, int64_t tile_stride, int64_t tiles,
                 int64_t columns, const void* bias, void* values, int64_t row_stride);
};

// Some output rows of a depthwise convolution, channels last: `lines` has a pointer to each line of
// the input that they meet (null: outside of the image), which holds `width` pixels of the dtype.
// The weight is [tap][channel]. The last four are read by kernels of any shape alone.
struct DepthwiseBand {
  const void* const* lines;
  int64_t width;
  int64_t channels;
  int64_t padding;
  const void* weight;
  const void* bias;
  void* to;  // [rows][pixels][channels]
  int64_t row_stride;
  int64_t rows;  // at most DepthwiseKernels::rows
  int64_t pixels;
  int64_t kernel_height;
  int64_t kernel_width;
  int64_t stride;
  int64_t dilation;
};

// Output rows of one channel's plane. `lines` are as pad() writes them: `stride_width` phases of
// `phase_stride` numbers each, whose places are those of the padded line a stride apart. They may
// be read `lanes` numbers, and lines of `plane_rows` rows, beyond the output's.
struct DepthwisePlane {
  void* lines;
  int64_t line_stride;
  int64_t phase_stride;
  const void* weight;
  const void* bias;  // one number, or null
  void* to;          // [rows][pixels]
  int64_t rows;
  int64_t pixels;
  int64_t height;  // of the input
  int64_t width;
  int64_t padding_height;
  int64_t padding_width;
  int64_t stride_height;
  int64_t stride_width;
  int64_t kernel_height;
  int64_t kernel_width;
  int64_t dilation_height;
  int64_t dilation_width;
};

// Of one shape of kernel.
struct DepthwiseKernels {
  int64_t rows;  // of a band
  void (*band)(const DepthwiseBand& band);
  int64_t plane_rows;
  int64_t lanes;
  void (*plane)(const DepthwisePlane& plane);
  // Lines [first, first + count) of the padded plane, from the plane.
  void (*pad)(const DepthwisePlane& plane, const void* from, int64_t first, int64_t count);
};
// Square kernels of these sizes and strides without dilation; others have any.
enum DepthwiseShape : int { k3Stride1, k3Stride2, k5Stride1, k5Stride2, kAnyShape, kNumDepthwise };

struct ConvKernels {
  WinogradKernels winograd2;  // M = 2
  WinogradKernels winograd4;
  DepthwiseKernels depthwise[kNumDepthwise];
};

}  // namespace fastact
