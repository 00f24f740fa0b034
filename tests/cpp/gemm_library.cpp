// cpu/gemm/ as convolutions and recurrent layers call it: every algorithm, with bias and slopes
// along the rows or the columns of the result, a residual and the pre-activation, against plain
// loops. Links the library's own objects.
#include <cmath>
#include <cstdio>
#include <random>
#include <set>
#include <vector>

#include "cpu/gemm/gemm.h"

using namespace fastact;

namespace {

std::mt19937 generator(0);

std::vector<float> random_numbers(int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(n);
  for (float& x : numbers) x = normal(generator);
  return numbers;
}

// Strides of b: its rows, or its columns, lie one after the other. Returns the algorithm, or -1.
int check(int64_t m, int64_t n, int64_t k, bool b_along_k, Along channels, bool has_residual) {
  const auto a = random_numbers(m * k), b = random_numbers(k * n), residual = random_numbers(m * n);
  const int64_t count = channels == Along::kRows ? m : n;
  const auto bias = random_numbers(count), slope = random_numbers(count);
  std::vector<float> c(m * n, NAN), z(m * n, NAN);
  const AddResidual add{kFloat32, residual.data()};
  const KeepPreActivation keep{kFloat32, z.data()};
  const MultiplyBySlope multiply{kFloat32, slope.data(), /*per_channel=*/true, channels};
  GemmEpilogue epilogue;
  epilogue.bias = bias.data();
  epilogue.channels = channels;
  if (has_residual) epilogue.stages.add(add);
  epilogue.stages.add(keep);
  epilogue.stages.add(multiply);
  const GemmOperand right = b_along_k ? GemmOperand{b.data(), 1, k} : GemmOperand{b.data(), n, 1};
  const GemmProblem problem{kFloat32, m,       n,        k, {a.data(), k, 1},
                            right,    nullptr, c.data(), n, epilogue};
  gemm(problem);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const int64_t channel = channels == Along::kRows ? i : j;
      const double before = has_residual ? residual[i * n + j] : 0.0;
      double sum = bias[channel] + before;
      double size = std::abs(double(bias[channel])) + std::abs(before);
      for (int64_t l = 0; l < k; ++l) {
        const double term = double(a[i * k + l]) * (b_along_k ? b[j * k + l] : b[l * n + j]);
        sum += term;
        size += std::abs(term);
      }
      const double y = sum > 0 ? sum : slope[channel] * sum;
      const double bound = 1e-6 * size;
      const bool right_z = std::abs(z[i * n + j] - sum) <= bound;
      const bool right_y = std::abs(c[i * n + j] - y) <= bound * (1 + std::abs(slope[channel]));
      if (!right_z || !right_y) {
        std::printf("%ldx%ldx%ld, element %ld, %ld: %g and %g, expected %g and %g\n", long(m),
                    long(k), long(n), long(i), long(j), z[i * n + j], c[i * n + j], sum, y);
        return -1;
      }
    }
  }
  return static_cast<int>(gemm_algorithm(problem));
}

}  // namespace

int main() {
  std::set<int> algorithms;
  int right = 0;
  for (const Along channels : {Along::kRows, Along::kColumns}) {
    for (const int64_t m : {1, 5, 8, 9, 40, 200, 300}) {
      for (const int64_t n : {1, 17, 64, 130, 320}) {
        for (const int64_t k : {1, 33, 200}) {
          for (int form = 0; form < 4; ++form) {
            const int algorithm = check(m, n, k, form & 1, channels, form & 2);
            if (algorithm < 0) return 1;
            algorithms.insert(algorithm);
            ++right;
          }
        }
      }
    }
  }
  std::printf("%d products right, by %zu algorithms\n", right, algorithms.size());
  return 0;
}
