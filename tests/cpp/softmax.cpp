// Are the softmax kernels of each instruction set right for every length, along rows and columns,
// with masks and without; the same for a row in any batch; and do they keep to their memory?
#include "kernels.h"

FASTACT_TEST_KERNELS(SoftmaxKernels, softmax)

using namespace fastact;
using namespace fastact_test;

namespace {

const SoftmaxKernels* const* kernels;

template <class T>
const SoftmaxKernels& kernels_of() {
  return *kernels[kDtypeOf<T>];
}

// Scratch memory of exactly the size that the kernel asks for.
using Scratch = Walled<char>;

// softmax or log_softmax of numbers `stride` apart, in double.
std::vector<double> softmax_of(const std::vector<double>& z, bool log) {
  double largest = -INFINITY, sum = 0;
  for (double one : z) largest = std::max(largest, one);
  for (double one : z) sum += std::exp(one - largest);
  std::vector<double> y;
  for (double one : z) {
    y.push_back(log ? one - largest - std::log(sum) : std::exp(one - largest) / sum);
  }
  return y;
}

// What float (double) arithmetic and one rounding to T may be off.
template <class T>
double allowed(double exact, bool log, std::size_t length) {
  const double epsilon = kEpsilon<compute_t<T>>;
  // The exponent and the sum are rounded; a logarithm is a difference of larger numbers.
  const double computed = log ? 16 * epsilon * (1 + std::abs(exact))
                              : (16 + static_cast<double>(length) / 64) * epsilon * exact;
  const double stored = sizeof(T) == 2 ? 0.51 * kEpsilon<T> * std::abs(exact) : 0;
  return computed + stored + kSmallest<T>;
}

// What stands between x and the exponents.
enum class Mask { kNone, kAdded, kAddedToEachRow, kSelecting };

struct Problem {
  std::size_t rows, length;
  SoftmaxArguments arguments;
  Mask mask = Mask::kNone;
};

// 0, -inf, and where they are added, other numbers; one in a row at least is 0.
template <class T>
void fill_mask(Walled<T>& mask, Random& random, std::size_t length, bool selecting) {
  for (std::size_t i = 0; i < mask.size(); ++i) {
    const int64_t kind = random.integer(0, 3);
    const double value = kind == 0                 ? -INFINITY
                         : kind == 1 && !selecting ? random.uniform(-2, 2)
                                                   : 0;
    mask[i] = rounded<T>(i % length == length / 2 ? 0 : value);
  }
}

template <class T>
void check_rows(const Problem& p, Random& random) {
  const std::size_t n = p.length, count = p.rows * n;
  const bool per_row = p.mask == Mask::kAddedToEachRow || p.mask == Mask::kSelecting;
  Walled<T> x(count), y(count), mask(p.mask == Mask::kNone ? 0 : per_row ? count : n);
  fill(x, random, -6, 6);
  fill_mask(mask, random, n, p.mask == Mask::kSelecting);
  const int64_t mask_stride = per_row ? static_cast<int64_t>(n) : 0;
  const void* const mask_data = p.mask == Mask::kNone ? nullptr : mask.data();
  Scratch scratch(static_cast<std::size_t>(kernels_of<T>().rows_scratch(p.arguments.length)));
  kernels_of<T>().rows(x.data(), mask_data, mask_stride, y.data(), static_cast<int64_t>(p.rows),
                       p.arguments, scratch.data());
  for (std::size_t row = 0; row < p.rows; ++row) {
    std::vector<double> z;
    for (std::size_t i = 0; i < n; ++i) {
      const double scaled = p.arguments.scale * value_of(x[row * n + i]);
      z.push_back(p.mask == Mask::kNone ? scaled
                                        : scaled + value_of(mask[(per_row ? row * n : 0) + i]));
    }
    const std::vector<double> exact = softmax_of(z, p.arguments.log);
    for (std::size_t i = 0; i < n; ++i) {
      CHECK_NEAR(value_of(y[row * n + i]), exact[i], allowed<T>(exact[i], p.arguments.log, n));
    }
    // Alone, and in place, a row has the same bits.
    Walled<T> alone(n, Place::kBehindTheWall);
    std::copy_n(x.begin() + row * n, n, alone.begin());
    const void* const own_mask =
        mask_data ? static_cast<const void*>(mask.data() + (per_row ? row * n : 0)) : nullptr;
    kernels_of<T>().rows(alone.data(), own_mask, mask_stride, alone.data(), 1, p.arguments,
                         scratch.data());
    for (std::size_t i = 0; i < n; ++i) CHECK(same_bits(alone[i], y[row * n + i]));
  }
}

// Around registers, groups of them, and the lengths at which the algorithm changes (128, 1024).
const std::size_t kLengths[] = {1,  2,  3,  4,  5,  7,   8,   9,   15,  16,  17,   31,   32,
                                33, 47, 63, 64, 65, 100, 127, 128, 129, 200, 1024, 1025, 2100};

}  // namespace

FASTACT_TEST(rows) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    Random random;
    for (const std::size_t length : kLengths) {
      for (const std::size_t rows : {1, 3, 16, 17}) {
        if (length * rows > 8000) continue;
        for (const bool log : {false, true}) {
          for (const double scale : {1.0, -0.375}) {
            for (const Mask mask :
                 {Mask::kNone, Mask::kAdded, Mask::kAddedToEachRow, Mask::kSelecting}) {
              for (const bool alone : {false, true}) {
                const Context context("%zu rows of %zu, log %d, scale %g, mask %d, alone %d", rows,
                                      length, log, scale, static_cast<int>(mask), alone);
                const auto n = static_cast<int64_t>(length);
                check_rows<T>(
                    {rows, length, {n, scale, log, mask == Mask::kSelecting, alone}, mask}, random);
              }
            }
          }
        }
      }
    }
  });
}

FASTACT_TEST(rows_of_special_values) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    for (const std::size_t length : {5, 40, 128, 300, 1100}) {
      for (const bool log : {false, true}) {
        const Context context("rows of %zu, log %d", length, log);
        const SoftmaxArguments arguments{static_cast<int64_t>(length), 1, log};
        Scratch scratch(static_cast<std::size_t>(kernels_of<T>().rows_scratch(arguments.length)));
        Walled<T> x(length), y(length);
        const auto run = [&](double others, double one) {
          for (T& value : x) value = rounded<T>(others);
          x[length - 2] = rounded<T>(one);
          kernels_of<T>().rows(x.data(), nullptr, 0, y.data(), 1, arguments, scratch.data());
        };
        run(1, -INFINITY);
        CHECK_SAME(value_of(y[length - 2]), log ? -INFINITY : 0.0);
        CHECK_NEAR(value_of(y[0]), log ? -std::log(length - 1.0) : 1 / (length - 1.0),
                   allowed<T>(log ? std::log(length - 1.0) : 1.0 / (length - 1.0), log, length));
        run(-3e4, 3e4);  // far apart: nothing overflows
        CHECK_SAME(value_of(y[length - 2]), log ? 0.0 : 1.0);
        CHECK_NEAR(value_of(y[0]), log ? -6e4 : 0.0, log ? 6e4 * kEpsilon<T> : 0);
        // One NaN, wherever it stands, and infinity make all NaN.
        for (const double special : {double(NAN), double(INFINITY)}) {
          run(0.5, special);
          for (std::size_t i = 0; i < length; ++i) {
            if (!log || std::isnan(special) || i == length - 2) CHECK(std::isnan(value_of(y[i])));
          }
        }
        // What is masked does not count, whatever it is.
        Walled<T> mask(length);
        for (T& value : mask) value = rounded<T>(0);
        mask[length - 2] = rounded<T>(-INFINITY);
        SoftmaxArguments selecting = arguments;
        selecting.select = true;
        for (const double special : {double(NAN), double(INFINITY)}) {
          for (T& value : x) value = rounded<T>(2);
          x[length - 2] = rounded<T>(special);
          kernels_of<T>().rows(x.data(), mask.data(), 0, y.data(), 1, selecting, scratch.data());
          CHECK_SAME(value_of(y[length - 2]), log ? -INFINITY : 0.0);
          CHECK(std::isfinite(value_of(y[0])));
        }
      }
    }
  });
}

FASTACT_TEST(columns) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    Random random;
    for (const std::size_t length : {1, 2, 3, 4, 5, 7, 8, 17, 130}) {
      for (const std::size_t columns : {1, 2, 15, 16, 17, 63, 64, 65, 130, 255, 256, 257, 600}) {
        for (const bool log : {false, true}) {
          const Context context("%zu columns of %zu, log %d", columns, length, log);
          // A gap behind each row, which the last one has not.
          const std::size_t stride = columns + 5, count = (length - 1) * stride + columns;
          const SoftmaxArguments arguments{static_cast<int64_t>(length), log ? 1.0 : 0.75, log};
          Walled<T> x(count), y(count), grad(count), dx(count);
          fill(x, random, -6, 6);
          fill(y, random, 50, 60);
          fill(grad, random, -1, 1);
          fill(dx, random, 50, 60);
          const std::vector<T> gap(y.begin(), y.end()), gap_of_dx(dx.begin(), dx.end());
          Scratch scratch(
              static_cast<std::size_t>(kernels_of<T>().columns_scratch(arguments.length)));
          kernels_of<T>().columns(x.data(), y.data(), static_cast<int64_t>(stride),
                                  static_cast<int64_t>(columns), arguments, scratch.data());
          kernels_of<T>().columns_backward(grad.data(), y.data(), dx.data(),
                                           static_cast<int64_t>(stride),
                                           static_cast<int64_t>(columns), arguments);
          for (std::size_t j = 0; j < columns; ++j) {
            std::vector<double> z;
            double sum = 0, size = 0;
            for (std::size_t d = 0; d < length; ++d) {
              const std::size_t at = d * stride + j;
              z.push_back(arguments.scale * value_of(x[at]));
              const double term = value_of(grad[at]) * (log ? 1 : value_of(y[at]));
              sum += term;
              size += std::abs(term);
            }
            const std::vector<double> exact = softmax_of(z, log);
            for (std::size_t d = 0; d < length; ++d) {
              const std::size_t at = d * stride + j;
              CHECK_NEAR(value_of(y[at]), exact[d], allowed<T>(exact[d], log, length));
              const double g = value_of(grad[at]), v = value_of(y[at]);
              const double slope = log ? g - std::exp(v) * sum : arguments.scale * v * (g - sum);
              const double error = 32 * kEpsilon<compute_t<T>> * (1 + size) +
                                   kEpsilon<T> * std::abs(slope) + kSmallest<T>;
              CHECK_NEAR(value_of(dx[at]), slope, error);
            }
          }
          for (std::size_t at = 0; at < count; ++at) {
            CHECK(at % stride < columns ||
                  (same_bits(y[at], gap[at]) && same_bits(dx[at], gap_of_dx[at])));
          }
          // The last column, alone and in place: the same bits.
          std::vector<T> alone(x.begin() + columns - 1, x.end());
          kernels_of<T>().columns(alone.data(), alone.data(), static_cast<int64_t>(stride), 1,
                                  arguments, scratch.data());
          for (std::size_t d = 0; d < length; ++d) {
            CHECK(same_bits(alone[d * stride], y[d * stride + columns - 1]));
          }
        }
      }
    }
  });
}

FASTACT_TEST(backward_of_rows) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    Random random;
    for (const std::size_t n : kLengths) {
      for (const bool log : {false, true}) {
        const std::size_t rows = n < 300 ? 5 : 2;
        const Context context("%zu rows of %zu, log %d", rows, n, log);
        const SoftmaxArguments arguments{static_cast<int64_t>(n), log ? 1.0 : -1.25, log};
        Walled<T> grad(rows * n), y(rows * n), dx(rows * n);
        fill(grad, random, -1, 1);
        for (T& value : y) {
          value = rounded<T>(log ? random.uniform(-8, -0.5) : random.uniform(0, 2.0 / double(n)));
        }
        kernels_of<T>().rows_backward(grad.data(), y.data(), dx.data(), static_cast<int64_t>(rows),
                                      arguments);
        for (std::size_t row = 0; row < rows; ++row) {
          double sum = 0, size = 0;
          for (std::size_t i = row * n; i < (row + 1) * n; ++i) {
            const double term = value_of(grad[i]) * (log ? 1 : value_of(y[i]));
            sum += term;
            size += std::abs(term);
          }
          for (std::size_t i = row * n; i < (row + 1) * n; ++i) {
            const double g = value_of(grad[i]), v = value_of(y[i]);
            const double slope = log ? g - std::exp(v) * sum : arguments.scale * v * (g - sum);
            const double scale = log ? 1 + size : v * (1 + size);
            CHECK_NEAR(
                value_of(dx[i]), slope,
                32 * kEpsilon<compute_t<T>> * scale + kEpsilon<T> * std::abs(slope) + kSmallest<T>);
          }
          // Alone, over its gradient: the same bits.
          Walled<T> alone(n, Place::kBehindTheWall);
          std::copy_n(grad.begin() + row * n, n, alone.begin());
          kernels_of<T>().rows_backward(alone.data(), y.data() + row * n, alone.data(), 1,
                                        arguments);
          for (std::size_t i = 0; i < n; ++i) CHECK(same_bits(alone[i], dx[row * n + i]));
        }
      }
    }
  });
}

FASTACT_TEST(boolean_masks) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    for (std::size_t n = 0; n <= 70; ++n) {
      Walled<uint8_t> mask(n);
      Walled<T> row(n), dx(n);
      for (std::size_t i = 0; i < n; ++i) {
        mask[i] = i % 3 != 1;
        dx[i] = rounded<T>(static_cast<double>(i) + 1);
      }
      kernels_of<T>().widen_mask(mask.data(), row.data(), static_cast<int64_t>(n));
      kernels_of<T>().clear_masked(mask.data(), dx.data(), static_cast<int64_t>(n));
      for (std::size_t i = 0; i < n; ++i) {
        CHECK_SAME(value_of(row[i]), mask[i] ? 0.0 : -INFINITY);
        CHECK_SAME(value_of(dx[i]), mask[i] ? static_cast<double>(i) + 1 : 0.0);
      }
    }
  });
}

int main(int count, char** arguments) { return run_with(all_tables, kernels, count, arguments); }
