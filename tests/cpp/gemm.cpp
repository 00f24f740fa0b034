// Do the pieces of a matrix product (packing, tiles, dot products, conversions of rows) of each
// instruction set do what their table says, and keep to their memory? The numbers are small
// integers, whose sums are exact in every dtype, so that every comparison is one of bits.
#include "kernels.h"

FASTACT_TEST_KERNELS(GemmKernels, gemm)

using namespace fastact;
using namespace fastact_test;

namespace {

const GemmKernels* const* kernels;

template <class T>
const GemmKernels& kernels_of() {
  return *kernels[kDtypeOf<T>];
}

// `rows` by `columns` elements in walled memory, `row_stride` and `column_stride` apart.
template <class T>
struct Matrix {
  int64_t rows, columns, row_stride, column_stride;
  Walled<T> memory;

  Matrix(int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride, Place place)
      : rows(rows),
        columns(columns),
        row_stride(row_stride),
        column_stride(column_stride),
        memory(rows && columns ? static_cast<std::size_t>((rows - 1) * row_stride +
                                                          (columns - 1) * column_stride + 1)
                               : 0,
               place) {
    // NaN in the gaps: what is read there shows.
    for (T& x : memory) x = rounded<T>(NAN);
  }

  T& at(int64_t i, int64_t j) {
    return memory[static_cast<std::size_t>(i * row_stride + j * column_stride)];
  }
  double value(int64_t i, int64_t j) { return value_of(at(i, j)); }

  void fill(Random& random, int64_t most = 3) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        at(i, j) = rounded<T>(static_cast<double>(random.integer(-most, most)));
      }
    }
  }
};

// How a matrix lies in memory.
enum class Layout { kRows, kRowsWithGaps, kColumns, kStepped };
constexpr Layout kLayouts[] = {Layout::kRows, Layout::kRowsWithGaps, Layout::kColumns,
                               Layout::kStepped};

template <class T>
Matrix<T> matrix(int64_t rows, int64_t columns, Layout layout,
                 Place place = Place::kBeforeTheWall) {
  switch (layout) {
    case Layout::kRows:
      return {rows, columns, columns, 1, place};
    case Layout::kRowsWithGaps:
      return {rows, columns, columns + 3, 1, place};
    case Layout::kColumns:
      return {rows, columns, 1, rows + 2, place};
    case Layout::kStepped:
      return {rows, columns, 2 * columns + 1, 2, place};
  }
  std::abort();
}

template <class T>
double product(Matrix<T>& a, Matrix<T>& b, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t k = 0; k < a.columns; ++k) sum += a.value(i, k) * b.value(k, j);
  return sum;
}

// The panels of b, all of them or one after the other.
template <class T>
Walled<char> packed_panels(Matrix<T>& b, bool one_by_one) {
  const GemmKernels& g = kernels_of<T>();
  const int64_t panels = ceil_div(b.columns, g.panel), units = ceil_div(b.rows, g.depth);
  Walled<char> packed(static_cast<std::size_t>(panels * units * g.panel * g.unit_bytes));
  for (int64_t first = 0; first < panels; first += one_by_one ? 1 : panels) {
    g.pack_panels(b.memory.data(), b.row_stride, b.column_stride, b.rows, b.columns, first,
                  one_by_one ? first + 1 : panels, packed.data());
  }
  return packed;
}

// An element of a packed unit.
template <class T>
double unit_value(const char* unit, int64_t element) {
  if (kernels_of<T>().depth == 2) {
    T x;
    std::memcpy(&x, unit + element * static_cast<int64_t>(sizeof x), sizeof x);
    return value_of(x);
  }
  compute_t<T> x;
  std::memcpy(&x, unit, sizeof x);
  return x;
}

}  // namespace

FASTACT_TEST(packing_of_panels) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    const GemmKernels& g = kernels_of<T>();
    Random random;
    for (const Layout layout : kLayouts) {
      for (const int64_t n :
           {int64_t{1}, g.lanes, g.lanes + 1, g.panel - 1, g.panel, g.panel + 3}) {
        for (const int64_t k : {1, 2, 3, 8, 17, 70, 131}) {
          const Context context("layout %d, %ld x %ld", static_cast<int>(layout), long(k), long(n));
          Matrix<T> b = matrix<T>(k, n, layout);
          b.fill(random);
          const Walled<char> packed = packed_panels(b, k % 2);
          const int64_t units = ceil_div(k, g.depth);
          for (int64_t j = 0; j < ceil_div(n, g.lanes) * g.lanes; ++j) {
            for (int64_t unit = 0; unit < units; ++unit) {
              const int64_t at = (j / g.panel * units + unit) * g.panel + j % g.panel;
              for (int64_t e = 0; e < g.depth; ++e) {
                const int64_t row = unit * g.depth + e;
                CHECK_SAME(unit_value<T>(packed.data() + at * g.unit_bytes, e),
                           row < k && j < n ? b.value(row, j) : 0.0);
              }
            }
          }
        }
      }
    }
  });
}

FASTACT_TEST(packing_of_rows) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    const GemmKernels& g = kernels_of<T>();
    Random random;
    for (const Layout layout : kLayouts) {
      for (const int64_t m : {int64_t{1}, int64_t{5}, g.lanes, g.lanes + 3, int64_t{70}}) {
        for (const int64_t k : {1, 2, 3, 8, 17, 70, 131}) {
          const Context context("layout %d, %ld x %ld", static_cast<int>(layout), long(m), long(k));
          Matrix<T> a = matrix<T>(m, k, layout);
          a.fill(random);
          const int64_t units = ceil_div(k, g.depth);
          const int64_t row_bytes = (units + k % 2) * g.unit_bytes;
          Walled<char> packed(static_cast<std::size_t>(m * row_bytes));
          // In two parts.
          for (const auto& [first, last] : {std::pair{int64_t{0}, m / 2}, std::pair{m / 2, m}}) {
            g.pack_rows(a.memory.data(), a.row_stride, a.column_stride, k, first, last,
                        packed.data(), row_bytes);
          }
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t e = 0; e < units * g.depth; ++e) {
              const char* const unit = packed.data() + i * row_bytes + e / g.depth * g.unit_bytes;
              CHECK_SAME(unit_value<T>(unit, e % g.depth), e < k ? a.value(i, e) : 0.0);
            }
          }
        }
      }
    }
  });
}

namespace {

enum class Bias { kNone, kPerColumn, kPerRow };

// c (+)= a b + bias, a as it lies or packed, by one tile a panel.
template <class T>
void check_tiles(int64_t m, int64_t n, int64_t k, Bias bias_kind, bool accumulate, Random& random) {
  using C = compute_t<T>;
  const GemmKernels& g = kernels_of<T>();
  const int64_t units = ceil_div(k, g.depth), padded = ceil_div(n, g.lanes) * g.lanes;
  Matrix<T> a = matrix<T>(m, k, Layout::kRowsWithGaps), b = matrix<T>(k, n, Layout::kRows);
  a.fill(random);
  b.fill(random);
  Walled<char> panels = packed_panels(b, false);
  const bool in_place = g.rows_in_place && k % g.depth == 0 && m % 2;
  Walled<char> rows(static_cast<std::size_t>(in_place ? 0 : m * units * g.unit_bytes));
  if (!in_place) {
    g.pack_rows(a.memory.data(), a.row_stride, 1, k, 0, m, rows.data(), units * g.unit_bytes);
  }
  // Whole registers are read.
  Walled<C> bias(static_cast<std::size_t>(bias_kind == Bias::kPerRow ? m : padded));
  for (C& x : bias) x = static_cast<C>(random.integer(-9, 9));
  Walled<C> c(static_cast<std::size_t>(m * padded));
  for (C& x : c) x = static_cast<C>(random.integer(-9, 9));
  const std::vector<C> before(c.begin(), c.end());
  for (int64_t column = 0; column < n; column += g.panel) {
    GemmTile tile{};
    tile.a = in_place ? static_cast<const void*>(a.memory.data()) : rows.data();
    tile.row_bytes = in_place ? a.row_stride * int64_t{sizeof(T)} : units * g.unit_bytes;
    tile.b = panels.data() + column * units * g.unit_bytes;
    tile.b_bytes = g.panel * g.unit_bytes;
    tile.units = units;
    tile.rows = m;
    tile.columns = static_cast<int>(std::min(n - column, g.panel));
    tile.bias_per_row = bias_kind == Bias::kPerRow;
    tile.bias = bias_kind == Bias::kNone     ? nullptr
                : bias_kind == Bias::kPerRow ? bias.data()
                                             : bias.data() + column;
    tile.accumulate = accumulate;
    tile.c = c.data() + column;
    tile.c_stride = padded;
    g.tile(tile);
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const auto at = static_cast<std::size_t>(i * padded + j);
      double first = 0;
      if (accumulate) {
        first = before[at];
      } else if (bias_kind != Bias::kNone) {
        first = bias[static_cast<std::size_t>(bias_kind == Bias::kPerRow ? i : j)];
      }
      CHECK_SAME(double(c[at]), first + product(a, b, i, j));
    }
  }
}

}  // namespace

FASTACT_TEST(tiles) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    const GemmKernels& g = kernels_of<T>();
    Random random;
    // Every number of rows of a micro-tile; every number of registers; around a block of k.
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 18, 25}) {
      for (const int64_t n :
           {int64_t{1}, g.lanes, g.lanes + 1, 3 * g.lanes, g.panel - 1, g.panel, g.panel + 5}) {
        for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{7}, g.block + 1}) {
          for (const Bias bias : {Bias::kNone, Bias::kPerColumn, Bias::kPerRow}) {
            for (const bool accumulate : {false, true}) {
              if (accumulate && bias != Bias::kNone) continue;
              const Context context("%ld x %ld x %ld, bias %d, accumulate %d", long(m), long(k),
                                    long(n), static_cast<int>(bias), accumulate);
              check_tiles<T>(m, n, k, bias, accumulate, random);
            }
          }
        }
      }
    }
  });
}

FASTACT_TEST(dot_products) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    using C = compute_t<T>;
    Random random;
    for (int64_t m = 1; m <= kMaxGemmRows; ++m) {
      for (const int64_t n : {1, 2, 5, 6, 7, 8, 9, 12, 25}) {
        for (const int64_t k : {0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100}) {
          for (const bool has_bias : {false, true}) {
            const Context context("%ld x %ld x %ld, bias %d", long(m), long(k), long(n), has_bias);
            Matrix<T> x = matrix<T>(m, k, Layout::kRowsWithGaps);
            Matrix<T> w = matrix<T>(n, k, Layout::kRowsWithGaps);
            x.fill(random);
            w.fill(random);
            Walled<C> bias(static_cast<std::size_t>(n));
            for (C& one : bias) one = static_cast<C>(random.integer(-9, 9));
            Walled<C> c(static_cast<std::size_t>((m - 1) * (n + 2) + n));
            for (C& one : c) one = C(77);
            kernels_of<T>().rows({x.memory.data(), x.row_stride, w.memory.data(), w.row_stride, k,
                                  m, n, has_bias ? bias.data() : nullptr, c.data(), n + 2});
            for (int64_t i = 0; i < m; ++i) {
              for (int64_t j = 0; j < n; ++j) {
                double sum = has_bias ? bias[static_cast<std::size_t>(j)] : 0;
                for (int64_t e = 0; e < k; ++e) sum += x.value(i, e) * w.value(j, e);
                CHECK_SAME(double(c[static_cast<std::size_t>(i * (n + 2) + j)]), sum);
              }
              for (int64_t j = n; j < n + 2 && i + 1 < m; ++j) {
                CHECK_SAME(c[static_cast<std::size_t>(i * (n + 2) + j)], C(77));
              }
            }
          }
        }
      }
    }
  });
}

// ---- rows of a tile ----------------------------------------------------------------------------

namespace {

constexpr int64_t kHeights[] = {0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 65};
constexpr int64_t kWidths[] = {1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 64, 70};

// f(rows, columns, place)
template <class F>
void for_each_shape(const F& f) {
  for (const int64_t rows : kHeights) {
    for (const int64_t columns : kWidths) {
      const Context context("%ld x %ld", long(rows), long(columns));
      f(rows, columns, (rows + columns) % 2 ? Place::kBehindTheWall : Place::kBeforeTheWall);
    }
  }
}

}  // namespace

FASTACT_TEST(stores_of_rows_and_of_columns) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    using C = compute_t<T>;
    Random random;
    for_each_shape([&](int64_t rows, int64_t columns, Place place) {
      Matrix<C> tile = matrix<C>(rows, columns, Layout::kRowsWithGaps, place);
      Matrix<T> c = matrix<T>(rows, columns, Layout::kRowsWithGaps, place);
      Matrix<T> transposed = matrix<T>(columns, rows, Layout::kRowsWithGaps, place);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) tile.at(i, j) = C(random.uniform(-99, 99));
      }
      const auto before = [](const auto& m) {
        return std::vector<T>(m.memory.data(), m.memory.data() + m.memory.size());
      };
      const std::vector<T> c_before = before(c), transposed_before = before(transposed);
      kernels_of<T>().store_rows(tile.memory.data(), tile.row_stride, rows, columns,
                                 c.memory.data(), c.row_stride);
      kernels_of<T>().store_transposed(tile.memory.data(), tile.row_stride, rows, columns,
                                       transposed.memory.data(), transposed.row_stride);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          CHECK(same_bits(c.at(i, j), rounded<T>(tile.at(i, j))));
          CHECK(same_bits(transposed.at(j, i), rounded<T>(tile.at(i, j))));
        }
      }
      // The gaps are as they were.
      const auto check_gaps = [](auto& m, const std::vector<T>& old) {
        for (std::size_t at = 0; at < old.size(); ++at) {
          CHECK(static_cast<int64_t>(at) % m.row_stride < m.columns ||
                same_bits(m.memory[at], old[at]));
        }
      };
      check_gaps(c, c_before);
      check_gaps(transposed, transposed_before);
    });
  });
}

FASTACT_TEST(additions_to_a_tile) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    using C = compute_t<T>;
    Random random;
    for_each_shape([&](int64_t rows, int64_t columns, Place place) {
      Matrix<C> tile = matrix<C>(rows, columns, Layout::kRowsWithGaps, place);
      Matrix<T> x = matrix<T>(rows, columns, Layout::kRowsWithGaps, place);
      tile.fill(random);
      x.fill(random);
      std::vector<C> before(tile.memory.begin(), tile.memory.end());
      kernels_of<T>().add_to_tile(x.memory.data(), x.row_stride, rows, columns, tile.memory.data(),
                                  tile.row_stride);
      for (std::size_t at = 0; at < before.size(); ++at) {
        const int64_t i = static_cast<int64_t>(at) / tile.row_stride;
        const int64_t j = static_cast<int64_t>(at) % tile.row_stride;
        CHECK_SAME(tile.memory[at], j < columns ? C(before[at] + x.value(i, j)) : before[at]);
      }
    });
  });
}

FASTACT_TEST(wider_elements) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    using C = compute_t<T>;
    Random random;
    for (std::size_t n = 0; n <= 70; ++n) {
      Walled<T> x(n);
      Walled<C> y(n);
      fill(x, random, -50, 50);
      kernels_of<T>().widen(x.data(), y.data(), static_cast<int64_t>(n));
      for (std::size_t i = 0; i < n; ++i) CHECK_SAME(double(y[i]), value_of(x[i]));
    }
  });
}

FASTACT_TEST(sums_of_rows) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    using C = compute_t<T>;
    Random random;
    for_each_shape([&](int64_t rows, int64_t columns, Place place) {
      Matrix<T> x = matrix<T>(rows, columns, Layout::kRowsWithGaps, place);
      Walled<C> sums(static_cast<std::size_t>(columns), place);
      x.fill(random);
      for (C& sum : sums) sum = C(10);
      kernels_of<T>().add_rows(x.memory.data(), x.row_stride, rows, columns, sums.data());
      for (int64_t j = 0; j < columns; ++j) {
        double sum = 10;
        for (int64_t i = 0; i < rows; ++i) sum += x.value(i, j);
        CHECK_SAME(double(sums[static_cast<std::size_t>(j)]), sum);
      }
    });
    // Equal numbers, whose rounding errors do not cancel: the sum is not that of one long chain.
    constexpr int64_t kMany = 20000;
    Matrix<T> x = matrix<T>(kMany, 3, Layout::kRows);
    for (T& one : x.memory) one = rounded<T>(0.1);
    Walled<C> sums(3);
    for (C& sum : sums) sum = 0;
    kernels_of<T>().add_rows(x.memory.data(), x.row_stride, kMany, 3, sums.data());
    const double exact = kMany * x.value(0, 0);
    for (const C sum : sums) CHECK_NEAR(sum, exact, 8 * kEpsilon<C> * exact);
  });
}

int main(int count, char** arguments) { return run_with(all_tables, kernels, count, arguments); }
