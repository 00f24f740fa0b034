#include "cpu/stages.h"

namespace fastact {
namespace {

void store(Dtype dtype, const FinishedTile& tile, void* to) {
  const GemmKernels& g = kernels().gemm[dtype];
  (tile.transposed ? g.store_transposed : g.store_rows)(
      tile.values, tile.stride, tile.rows, tile.columns,
      static_cast<char*>(to) + tile.offset * size_of(dtype), tile.c_stride);
}

}  // namespace

void Stages::finish(Dtype dtype, const FinishedTile& tile, void* c) const {
  if (reads_c_ && tile.transposed) {
    return finish_transposed(dtype, tile, c);
  }
  for (int i = 0; i < count_; ++i) {
    stages_[i].run(tile, stages_[i].arguments);
  }
  if (tile.values != static_cast<char*>(c) + tile.offset * size_of(dtype)) {
    store(dtype, tile, c);
  }
}

// Not inlined: every tile would pay for its memory.
[[gnu::noinline]] void Stages::finish_transposed(Dtype dtype, const FinishedTile& tile,
                                                 void* c) const {
  alignas(64) char transposed[kMostTileBytes];
  kernels().gemm[compute_dtype(dtype)].store_transposed(tile.values, tile.stride, tile.rows,
                                                        tile.columns, transposed, tile.rows);
  FinishedTile rows_of_c = tile;
  rows_of_c.values = transposed;
  rows_of_c.stride = tile.rows;
  rows_of_c.rows = tile.columns;
  rows_of_c.columns = tile.rows;
  rows_of_c.transposed = false;
  finish(dtype, rows_of_c, c);
}

void AddResidual::run(const FinishedTile& tile) const {
  kernels().gemm[dtype].add_to_tile(
      static_cast<const char*>(residual) + tile.offset * size_of(dtype), tile.c_stride, tile.rows,
      tile.columns, tile.values, tile.stride);
}

void KeepPreActivation::run(const FinishedTile& tile) const { store(dtype, tile, to); }

// Of what is between the rows, too.
void Activate::run(const FinishedTile& tile) const {
  kernel(tile.values, tile.values, tile.rows * tile.stride, parameters);
}

void MultiplyBySlope::run(const FinishedTile& tile) const {
  const PreluKernel kernel = kernels().elementwise[compute_dtype(dtype)].prelu;
  if (!per_channel) {
    return kernel(tile.values, slope, 0, tile.values, tile.rows * tile.stride);
  }
  const int64_t bytes = compute_size_of(dtype);
  const bool along_columns = (channels == Along::kColumns) != tile.transposed;
  const char* own = static_cast<const char*>(slope) + tile.channel * bytes;
  for (int64_t i = 0; i < tile.rows; ++i) {
    char* values = tile.values + i * tile.stride * bytes;
    kernel(values, own, along_columns, values, tile.columns);
    own += along_columns ? 0 : bytes;
  }
}

}  // namespace fastact
