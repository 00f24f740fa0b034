#include "cpu/gemm/gemm.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/softmax_rows.h"
#include "cpu/workspace.h"

namespace fastact {
namespace {

// Rows of a tile, MC: the part of a that meets a panel's at a time (KC, 128 units of k, is kBlock
// in kernels/gemm_tile.h) fills 96 KiB of the L2, and the panel's part is read from there 32 times.
constexpr int64_t kTileRows = 192;
constexpr int64_t kPanelRowBytes = 256;  // of every dtype and instruction set
static_assert(kTileRows * kPanelRowBytes <= kMostTileBytes);
// Of a product of few units, writing c takes the time: a tile has few rows, so that the next one
// goes on in the same pages. The weight's gradient at 1x1024x1024 took 119 us with tiles of 174
// rows, and takes 72 (2 threads, Zen 5).
constexpr int64_t kFewUnits = 32;
constexpr int64_t kRowsOfFewUnits = 12;
constexpr int64_t kPanelBytes = 64 << 10;     // of a panel that is packed a part at a time
constexpr int64_t kUnitsPackedTogether = 16;  // whole registers of every type
// Columns for which rows that share sets are packed: a copy takes about as long as the product of
// four columns (AVX2), and with 256 columns
// its product gained 12 to 17 % (1024x1024x256, Zen 3). Fewer were not tried.
constexpr int64_t kColumnsToPackRowsFor = 256;
constexpr int64_t kSkinnyElements = kMostTileBytes / 8 / kMaxGemmRows / 24 * 24;  // of each row

// Multiply-adds that a thread is woken for: 4 us of one core, where waking it and waiting for it
// take 1 us (Zen 5, benchmarks suite limits).
constexpr int64_t kParallelWork = int64_t{1} << 19;

// Elements of rows whose columns are summed while they lie in the L2: 128 KiB of
// float32 numbers and what they are formed from. At least so many rows that their sums take little
// memory beside them.
constexpr int64_t kSummedTogether = 1 << 15;
constexpr int64_t kLeastRowsSummed = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Work {
  const GemmProblem& p;
  const GemmKernels& g;
  int64_t size;          // of an element of c
  int64_t compute_size;  // of an element of a tile
  int64_t units;

  explicit Work(const GemmProblem& problem)
      : p(problem),
        g(kernels().gemm[problem.dtype]),
        size(size_of(problem.dtype)),
        compute_size(compute_size_of(problem.dtype)),
        units(ceil_div(problem.k, g.depth)) {}

  int64_t panels(int64_t columns) const { return ceil_div(columns, g.panel); }
  int64_t panel_bytes() const { return units * g.panel * g.unit_bytes; }

  // f(begin, end) over `count` equal pieces of this product.
  template <class F>
  void split(int64_t count, const F& f) const {
    const int64_t work = p.m * p.n * std::max<int64_t>(p.k, 1);
    parallel_for(count, std::max<int64_t>(count * kParallelWork / std::max<int64_t>(work, 1), 1),
                 f);
  }

  // Rows of equal tiles: at most kTileRows, and few enough that every thread gets as many.
  int64_t tile_rows(int64_t rows, int64_t panels, bool transposed) const {
    const int64_t threads = p.m * p.n * p.k < kParallelWork ? 1 : at::get_num_threads();
    const int64_t most = units < kFewUnits && !transposed ? kRowsOfFewUnits : kTileRows;
    int64_t blocks = ceil_div(rows, most);
    while (blocks * panels % threads && blocks * panels < 8 * threads && blocks * 12 < rows) {
      ++blocks;
    }
    return std::min(most, ceil_div(ceil_div(rows, blocks), 6) * 6);
  }

  // Whether a thread computes all columns of its rows of c, so that it can finish them while they
  // are in its cache: where there are rows enough, since each block of them reads all of b.
  bool completes_rows(bool transposed) const {
    return p.epilogue.softmax && !transposed && p.m > kTileRows;
  }

  int64_t offset(int64_t row, int64_t column) const {
    return p.c_offset + row * p.c_stride + column;
  }

  // Ends a tile whose first element is c[row][column], or, transposed, whose rows are columns of c.
  void finish(char* tile, int64_t tile_stride, int64_t rows, int64_t columns, int64_t row,
              int64_t column, bool transposed) const {
    if (transposed) {
      std::swap(row, column);
    }
    const int64_t channel = p.epilogue.channels == Along::kColumns ? column : row;
    p.epilogue.stages.finish(
        p.dtype,
        {tile, tile_stride, rows, columns, offset(row, column), p.c_stride, channel, transposed},
        p.c);
  }

  // What follows when rows of c are complete.
  void finish_rows(int64_t row, int64_t rows) const {
    char* first = static_cast<char*>(p.c) + row * p.n * size;
    softmax_rows(kernels().softmax[p.dtype], first, first, rows, *p.epilogue.softmax);
  }

  // Rows [0, rows) of `a` in place or packed against panels, where the panels are c's columns, or
  // its rows if transposed. panel(j, k, units, memory) gives units [k, k + units) of a panel and
  // their stride in bytes; it is asked for `step` units at a time and may put them into memory.
  template <class Panel>
  void multiply(const void* a, int64_t row_bytes, int64_t rows, int64_t columns, const Panel& panel,
                bool transposed, int64_t step) const {
    const int64_t count = panels(columns);
    const bool whole_rows = completes_rows(transposed);
    const int64_t height = tile_rows(rows, whole_rows ? 1 : count, transposed);
    const int64_t blocks = ceil_div(rows, height);
    const int64_t together = whole_rows ? count : 1;
    split(blocks * count / together, [&](int64_t begin, int64_t end) {
      alignas(64) char tile[kMostTileBytes];
      alignas(64) char memory[kPanelBytes];
      alignas(64) char whole_bias[kPanelRowBytes];
      for (int64_t k = begin * together; k < end * together; ++k) {
        const int64_t row = k / count * height;
        const int64_t column = k % count * g.panel;
        const int64_t tile_rows = std::min(height, rows - row);
        const int tile_columns = static_cast<int>(std::min(g.panel, columns - column));
        const int64_t tile_stride = ceil_div(tile_columns, g.lanes) * g.lanes;
        const bool bias_per_row = (p.epilogue.channels == Along::kRows) != transposed;
        const char* bias = static_cast<const char*>(p.epilogue.bias);
        if (bias) {
          bias += (bias_per_row ? row : column) * compute_size;
        }
        if (bias && !bias_per_row && tile_columns < tile_stride) {
          const int64_t bytes = tile_columns * compute_size;
          std::memcpy(whole_bias, bias, bytes);
          std::memset(whole_bias + bytes, 0, tile_stride * compute_size - bytes);
          bias = whole_bias;
        }
        int64_t first = 0;
        do {
          const int64_t own_units = std::min(step, units - first);
          const auto [b, b_bytes] = panel(k % count, first, own_units, memory);
          const bool stored = !transposed && first + own_units == units;
          g.tile({static_cast<const char*>(a) + row * row_bytes + first * g.unit_bytes, row_bytes,
                  b, b_bytes, own_units, tile_rows, tile_columns, bias, bias_per_row,
                  /*accumulate=*/first > 0, tile, tile_stride,
                  stored ? static_cast<const char*>(p.c) + offset(row, column) * size : nullptr,
                  p.c_stride * size});
          first += own_units;
        } while (first < units);
        finish(tile, tile_stride, tile_rows, tile_columns, row, column, transposed);
        if (whole_rows && k % count == count - 1) {
          finish_rows(row, tile_rows);
        }
      }
    });
  }

  void skinny() const {
    const int64_t threads = at::get_num_threads();
    const int64_t width =
        std::min(kSkinnyElements, std::max<int64_t>(ceil_div(ceil_div(p.n, threads), 24), 1) * 24);
    split(ceil_div(p.n, width), [&](int64_t begin, int64_t end) {
      alignas(64) char tile[kMostTileBytes];
      for (int64_t block = begin; block < end; ++block) {
        const int64_t column = block * width;
        const int64_t columns = std::min(width, p.n - column);
        const char* bias = static_cast<const char*>(p.epilogue.bias);
        g.rows({p.a.data, p.a.row_stride,
                static_cast<const char*>(p.b.data) + column * p.b.column_stride * size,
                p.b.column_stride, p.k, p.m, columns, bias ? bias + column * compute_size : bias,
                tile, columns});
        finish(tile, columns, p.m, columns, 0, column, /*transposed=*/false);
      }
    });
  }

  int64_t panels_bytes(int64_t columns) const { return panels(columns) * panel_bytes(); }

  // The panels of a matrix with k along `k_stride`, panels_bytes(columns) of them, into `to`.
  void pack_panels(const void* data, int64_t k_stride, int64_t stride, int64_t columns,
                   char* to) const {
    const int64_t count = panels(columns);
    // Few panels, of few rows of input, are divided along k, too: 32x784x256 has one.
    const int64_t threads = at::get_num_threads();
    const int64_t parts = count % threads && count < 4 * threads ? threads : 1;
    const int64_t part =
        ceil_div(ceil_div(units, parts), kUnitsPackedTogether) * kUnitsPackedTogether;
    split(count * parts, [&](int64_t begin, int64_t end) {
      if (parts == 1) {
        return g.pack_panels(data, k_stride, stride, p.k, columns, begin, end, to);
      }
      for (int64_t i = begin; i < end; ++i) {
        const int64_t panel = i / parts;
        const int64_t unit = i % parts * part;
        const int64_t k = unit * g.depth;
        if (k < p.k) {
          g.pack_panels(
              static_cast<const char*>(data) + (k * k_stride + panel * g.panel * stride) * size,
              k_stride, stride, std::min(part * g.depth, p.k - k), columns - panel * g.panel, 0, 1,
              to + panel * panel_bytes() + unit * g.panel * g.unit_bytes);
        }
      }
    });
  }

  // Whether the micro-kernel reads the rows of a as they lie: where columns are many, packing them
  // is little beside what sharing sets costs.
  bool reads_a_in_place() const {
    return g.rows_in_place && p.a.column_stride == 1 && p.k % g.depth == 0 &&
           !(shares_sets(p.a.row_stride * size) && p.m > 1 && p.n >= kColumnsToPackRowsFor);
  }

  int64_t packed_row_bytes() const { return spread_row_bytes(units * g.unit_bytes); }

  void pack_rows_of_a(void* to) const {
    const int64_t blocks = ceil_div(p.m, 16);
    split(blocks, [&](int64_t begin, int64_t end) {
      g.pack_rows(p.a.data, p.a.row_stride, p.a.column_stride, p.k, begin * 16,
                  std::min(end * 16, p.m), to, packed_row_bytes());
    });
  }

  void run(GemmAlgorithm algorithm) const {
    if (algorithm == GemmAlgorithm::kSkinny) {
      return skinny();
    }
    const int64_t panel_row = g.panel * g.unit_bytes;
    const auto whole = [&](const void* packed) {
      const char* first = static_cast<const char*>(packed);
      return [this, first, panel_row](int64_t j, int64_t unit, int64_t, char*) {
        return std::pair(first + j * panel_bytes() + unit * panel_row, panel_row);
      };
    };
    if (algorithm == GemmAlgorithm::kTransposed) {
      Workspace<> packed(panels_bytes(p.m));
      pack_panels(p.a.data, p.a.column_stride, p.a.row_stride, p.m, packed.get());
      return multiply(p.b.data, p.b.column_stride * size, p.n, p.m, whole(packed.get()),
                      /*transposed=*/true, units);
    }
    const bool in_place = reads_a_in_place();
    const int64_t row_bytes = in_place ? p.a.row_stride * size : packed_row_bytes();
    Workspace<> rows_of_a(in_place ? 0 : p.m * row_bytes);
    if (!in_place) {
      pack_rows_of_a(rows_of_a.get());
    }
    const void* a = in_place ? p.a.data : rows_of_a.get();
    const auto multiply_by = [&](const auto& panel, int64_t step) {
      multiply(a, row_bytes, p.m, p.n, panel, /*transposed=*/false, step);
    };
    const bool one_block = tile_rows(p.m, panels(p.n), /*transposed=*/false) >= p.m;
    if (algorithm == GemmAlgorithm::kInPlace || (algorithm == GemmAlgorithm::kPackB && one_block)) {
      // Each panel is read by one tile: it is packed for that, a part at a time, or read in place
      // but where it is narrower than a register.
      const int64_t step = kPanelBytes / panel_row / g.block * g.block;
      return multiply_by(
          [&](int64_t j, int64_t unit, int64_t count, char* to) {
            const int64_t column = j * g.panel;
            const int64_t k = unit * g.depth;
            const char* b = static_cast<const char*>(p.b.data) +
                            (k * p.b.row_stride + column * p.b.column_stride) * size;
            if (algorithm == GemmAlgorithm::kInPlace && column + g.panel <= p.n) {
              return std::pair(b, p.b.row_stride * size);
            }
            g.pack_panels(b, p.b.row_stride, p.b.column_stride, std::min(count * g.depth, p.k - k),
                          p.n - column, 0, 1, to);
            return std::pair(static_cast<const char*>(to), panel_row);
          },
          step);
    }
    if (algorithm == GemmAlgorithm::kPackedB) {
      return multiply_by(whole(p.packed_b), units);
    }
    Workspace<> packed(panels_bytes(p.n));
    pack_panels(p.b.data, p.b.row_stride, p.b.column_stride, p.n, packed.get());
    multiply_by(whole(packed.get()), units);
  }
};

}  // namespace

GemmAlgorithm gemm_algorithm(const GemmProblem& p) {
  const GemmKernels& g = kernels().gemm[p.dtype];
  const bool b_along_k = p.b.row_stride == 1;
  // Even for one row: a panel is read in order, and each of its elements is in a lane of its own.
  // 8x1024x1024 takes 49 us by it and 59 as skinny, 8x4096x4096 1.5 ms and 2.6, 1x1024x1024 31
  // and 32 (2 threads, Zen 5).
  if (p.packed_b) {
    return GemmAlgorithm::kPackedB;
  }
  if (p.m <= kMaxGemmRows && p.a.column_stride == 1 && b_along_k &&
      p.epilogue.channels == Along::kColumns) {
    return GemmAlgorithm::kSkinny;
  }
  if (p.b.column_stride == 1 && p.m <= 4 * kMaxGemmRows &&
      (p.dtype == kFloat32 || p.dtype == kFloat64)) {
    return GemmAlgorithm::kInPlace;
  }
  if (b_along_k && g.rows_in_place && p.k % g.depth == 0 && p.m < p.n && p.m <= 256) {
    return GemmAlgorithm::kTransposed;
  }
  return GemmAlgorithm::kPackB;
}

void gemm(const GemmProblem& p) {
  if (p.m > 0 && p.n > 0) {
    const Work work(p);
    const GemmAlgorithm algorithm = gemm_algorithm(p);
    work.run(algorithm);
    if (p.epilogue.softmax && !work.completes_rows(algorithm == GemmAlgorithm::kTransposed)) {
      parallel_for(p.m, std::max<int64_t>(kSoftmaxGrain / p.n, 1),
                   [&](int64_t begin, int64_t end) { work.finish_rows(begin, end - begin); });
    }
  }
}

int64_t gemm_packed_bytes(Dtype dtype, int64_t k, int64_t n) {
  const GemmKernels& g = kernels().gemm[dtype];
  return ceil_div(n, g.panel) * g.panel * ceil_div(k, g.depth) * g.unit_bytes;
}

void gemm_pack(Dtype dtype, int64_t k, int64_t n, const GemmOperand& b, void* packed) {
  const GemmKernels& g = kernels().gemm[dtype];
  std::memset(packed, 0, gemm_packed_bytes(dtype, k, n));
  g.pack_panels(b.data, b.row_stride, b.column_stride, k, n, 0, ceil_div(n, g.panel), packed);
}

void gemm_column_sums(Dtype dtype, const void* x, int64_t m, int64_t n, void* sums,
                      const std::function<void(int64_t row, int64_t rows, void* more)>& form,
                      int64_t more_sums) {
  const GemmKernels& g = kernels().gemm[dtype];
  const int64_t row_bytes = n * size_of(dtype);
  const int64_t compute_size = compute_size_of(dtype);
  const int64_t sums_bytes = (n + more_sums) * compute_size;
  // Blocks of a size that n alone decides: a sum's bits do not depend on the number of threads.
  const int64_t height = std::max(kSummedTogether / std::max<int64_t>(n, 1), kLeastRowsSummed);
  const int64_t blocks = ceil_div(m, height);
  const auto add_block = [&](int64_t block, char* to) {
    const int64_t row = block * height;
    const int64_t rows = std::min(height, m - row);
    std::memset(to, 0, sums_bytes);
    if (form) {
      form(row, rows, to + n * compute_size);
    }
    g.add_rows(static_cast<const char*>(x) + row * row_bytes, n, rows, n, to);
  };
  if (blocks == 1) {
    return add_block(0, static_cast<char*>(sums));
  }
  Workspace<> workspace(blocks * sums_bytes);
  char* parts = workspace.get();
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      add_block(block, parts + block * sums_bytes);
    }
  });
  std::memset(sums, 0, sums_bytes);
  kernels().gemm[compute_dtype(dtype)].add_rows(parts, n + more_sums, blocks, n + more_sums, sums);
}

}  // namespace fastact
