// The output of a convolution: how its tiles lie in it, and what ends them.
#pragma once

#include "cpu/stages.h"

namespace fastact {

// Sums of one image in the compute type: rows of pixels by columns of channels, or, by_channel,
// rows of channels by columns of pixels. Rows are `stride` elements apart, less than a register
// more than columns; at most kMostTileBytes.
struct ConvTile {
  void* values;
  int64_t stride;
  int64_t image;
  int64_t pixel;
  int64_t pixels;
  int64_t channel;
  int64_t channels;
  bool by_channel = false;
};

// Dense, [images][pixels][channels] or [images][channels][pixels]; the stages' channels lie along
// columns, or rows.
struct ConvOutput {
  Dtype dtype;
  bool channels_last;
  int64_t channels;
  int64_t pixels;  // of an image
  void* data;
  Stages stages;

  static Along channels_along(bool channels_last) {
    return channels_last ? Along::kColumns : Along::kRows;
  }

  // Runs the stages on the tile, which they overwrite, and stores it.
  void finish(const ConvTile& tile) const;
  // The same where the output holds all sums of `images` images, in the dtype.
  void finish_in_place(int64_t images) const;
};

}  // namespace fastact
