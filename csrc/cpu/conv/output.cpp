#include "cpu/conv/output.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace fastact {
namespace {

// Elements that are finished at a time: in float32 32 KiB, which stay in the L1 or near it.
constexpr int64_t kChunk = 8192;
// Elements that a thread is woken for.
constexpr int64_t kGrain = 1 << 15;

}  // namespace

void ConvOutput::finish(const ConvTile& t) const {
  FinishedTile tile;
  tile.values = static_cast<char*>(t.values);
  tile.stride = t.stride;
  tile.rows = t.by_channel ? t.channels : t.pixels;
  tile.columns = t.by_channel ? t.pixels : t.channels;
  tile.offset = channels_last ? (t.image * pixels + t.pixel) * channels + t.channel
                              : (t.image * channels + t.channel) * pixels + t.pixel;
  tile.c_stride = channels_last ? channels : pixels;
  tile.channel = t.channel;
  tile.transposed = t.by_channel == channels_last;
  stages.finish(dtype, tile, data);
}

void ConvOutput::finish_in_place(int64_t images) const {
  if (stages.empty() || channels == 0 || pixels == 0) {
    return;
  }
  const GemmKernels& g = kernels().gemm[dtype];
  const int64_t rows = channels_last ? pixels : channels;
  const int64_t length = channels_last ? channels : pixels;
  // Units of some rows, or of a part of one.
  const int64_t together = std::max<int64_t>(kChunk / length, 1);
  const int64_t row_units = (rows + together - 1) / together;
  const int64_t parts = (length + kChunk - 1) / kChunk;
  const int64_t grain = std::max<int64_t>(kGrain / std::min(kChunk, rows * length), 1);
  parallel_for(images * row_units * parts, grain, [&](int64_t begin, int64_t end) {
    alignas(64) char widened[kChunk * sizeof(float)];
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / (row_units * parts);
      const int64_t row = unit / parts % row_units * together;
      const int64_t column = unit % parts * kChunk;
      const int64_t own_rows = std::min(together, rows - row);
      const int64_t columns = std::min(kChunk, length - column);
      char* values =
          static_cast<char*>(data) + ((image * rows + row) * length + column) * size_of(dtype);
      if (compute_dtype(dtype) != dtype) {  // several rows are neighbours
        g.widen(values, widened, own_rows * columns);
        values = widened;
      }
      finish(channels_last
                 ? ConvTile{values, columns, image, row, own_rows, column, columns, false}
                 : ConvTile{values, columns, image, column, columns, row, own_rows, true});
    }
  });
}

}  // namespace fastact
