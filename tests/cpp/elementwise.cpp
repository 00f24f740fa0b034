// Do the elementwise kernels of each instruction set compute their formulas, wherever an element
// stands, and touch nothing else?
#include "kernels.h"
#include "math/activations.h"

FASTACT_TEST_KERNELS(ElementwiseKernels, elementwise)

using namespace fastact;
using namespace fastact_test;

namespace {

const ElementwiseKernels* const* kernels;

template <class T>
const ElementwiseKernels& kernels_of() {
  return *kernels[kDtypeOf<T>];
}

// An activation's formula for one double, through the C library.
struct Formula {
  const char* name;
  int index;
  int num_parameters;
  double parameters[2];
  bool (*saves_output)(const double*);
  double (*forward)(double x, const double* parameters);
  double (*backward)(double grad, double saved, const double* parameters);
};

template <class A>
Formula formula_of(int index) {
  Formula f{
      A::name,
      index,
      A::num_parameters,
      {},
      &A::saves_output,
      [](double x, const double* p) { return typename A::template Formula<double>(p).forward(x); },
      [](double grad, double saved, const double* p) {
        return typename A::template Formula<double>(p).backward(grad, saved);
      }};
  for (int i = 0; i < A::num_parameters; ++i) f.parameters[i] = A::parameters[i].value;
  return f;
}

template <class... A>
std::vector<Formula> formulas_of(ActivationList<A...>) {
  int index = 0;
  std::vector<Formula> all{formula_of<A>(index++)...};
  // At their defaults and not at them.
  const std::size_t count = all.size();
  for (std::size_t i = 0; i < count; ++i) {
    if (all[i].num_parameters == 0) continue;
    Formula other = all[i];
    other.parameters[0] += 0.375;
    other.parameters[1] += 0.625;
    all.push_back(other);
  }
  return all;
}

template <class F>
void for_each_formula(const F& f) {
  for (const Formula& formula : formulas_of(Activations())) {
    const Context context("%s(%g, %g)", formula.name, formula.parameters[0], formula.parameters[1]);
    f(formula);
  }
}

// One rounding in 16 bits. In float and double a few: the bounds themselves are measured over all
// inputs by fastact.testing.accuracy; a double's reference may itself have cancelled.
template <class T>
double allowed(double exact) {
  const double roundings = sizeof(T) == 2 ? 0.51 : sizeof(T) == 4 ? 4 : 4096;
  return roundings * kEpsilon<T> * std::abs(exact) + kSmallest<T>;
}

// Numbers of ordinary size, and in between every kind of special one.
template <class T>
void fill_mixed(Walled<T>& memory, Random& random) {
  static const double special[] = {0.0,  -0.0, INFINITY, -INFINITY, NAN,  1e-40, -1e-40,
                                   1e-7, 30.0, -30.0,    100.0,     -100, 6e4,   -6e4};
  std::size_t i = 0;
  for (T& x : memory) {
    x = rounded<T>(random.uniform(-12, 12));
    if (i % 3 == 2) x = rounded<T>(special[i / 3 % std::size(special)]);
    ++i;
  }
}

constexpr std::size_t kMost = 2 * 64 + 3;  // two groups of the widest registers and a tail

}  // namespace

FASTACT_TEST(forward) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    for_each_formula([](const Formula& f) {
      Random random;
      Walled<T> x(2000), y(2000);
      fill(x, random, -12, 12);
      kernels_of<T>().forward[f.index](x.data(), y.data(), 2000, f.parameters);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double exact = f.forward(value_of(x[i]), f.parameters);
        if (!CHECK_NEAR(value_of(y[i]), exact, allowed<T>(exact))) {
          note("of %a", value_of(x[i]));
        }
      }
    });
  });
}

FASTACT_TEST(backward) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    for_each_formula([](const Formula& f) {
      Random random;
      Walled<T> x(2000), grad(2000), dx(2000);
      fill(x, random, -12, 12);
      fill(grad, random, -3, 3);
      Walled<T>& saved = x;
      if (f.saves_output(f.parameters)) {
        kernels_of<T>().forward[f.index](x.data(), saved.data(), 2000, f.parameters);
      }
      kernels_of<T>().backward[f.index](grad.data(), saved.data(), dx.data(), 2000, f.parameters);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double exact = f.backward(value_of(grad[i]), value_of(saved[i]), f.parameters);
        if (!CHECK_NEAR(value_of(dx[i]), exact, 2 * allowed<T>(exact))) {
          note("of %a, grad %a", value_of(saved[i]), value_of(grad[i]));
        }
      }
    });
  });
}

FASTACT_TEST(special_values) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    for_each_formula([](const Formula& f) {
      Random random;
      Walled<T> x(300), y(300);
      fill_mixed(x, random);
      kernels_of<T>().forward[f.index](x.data(), y.data(), 300, f.parameters);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double input = value_of(x[i]), output = value_of(y[i]);
        CHECK(!std::isnan(input) || std::isnan(output));
        // Only NaN makes NaN. (Where the formula of one number has infinity times 0, vectors have
        // the limit.)
        CHECK(std::isnan(input) || !std::isnan(output));
        const double exact = f.forward(input, f.parameters);
        if (std::isnan(exact)) continue;
        // What is above the largest number is infinity.
        const double expected = value_of(rounded<T>(exact));
        if (!CHECK_NEAR(output, expected,
                        allowed<T>(expected) + kEpsilon<T> * std::abs(expected))) {
          note("of %a", input);
        }
      }
    });
  });
}

// Every length, at both ends of memory, in place and not: the same bits for an element.
FASTACT_TEST(forward_of_every_length) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    for_each_formula([](const Formula& f) {
      Random random;
      Walled<T> all(kMost), expected(kMost);
      fill_mixed(all, random);
      const UnaryKernel kernel = kernels_of<T>().forward[f.index];
      for (std::size_t i = 0; i < kMost; ++i) kernel(&all[i], &expected[i], 1, f.parameters);
      for (std::size_t n = 0; n <= kMost; ++n) {
        const Context context("%zu elements", n);
        const Place place = n % 2 ? Place::kBehindTheWall : Place::kBeforeTheWall;
        const std::size_t first = n % 3 ? 0 : kMost - n;
        Walled<T> x(n, place), y(n, place);
        std::copy_n(all.begin() + first, n, x.begin());
        kernel(x.data(), y.data(), static_cast<int64_t>(n), f.parameters);
        for (std::size_t i = 0; i < n; ++i) CHECK(same_bits(y[i], expected[first + i]));
        kernel(x.data(), x.data(), static_cast<int64_t>(n), f.parameters);
        for (std::size_t i = 0; i < n; ++i) CHECK(same_bits(x[i], expected[first + i]));
      }
    });
  });
}

FASTACT_TEST(backward_of_every_length) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    for_each_formula([](const Formula& f) {
      Random random;
      Walled<T> all(kMost), grads(kMost), expected(kMost);
      fill_mixed(all, random);
      fill(grads, random, -2, 2);
      const UnaryBackwardKernel kernel = kernels_of<T>().backward[f.index];
      for (std::size_t i = 0; i < kMost; ++i) {
        kernel(&grads[i], &all[i], &expected[i], 1, f.parameters);
      }
      for (std::size_t n = 0; n <= kMost; ++n) {
        const Context context("%zu elements", n);
        const Place place = n % 2 ? Place::kBehindTheWall : Place::kBeforeTheWall;
        Walled<T> grad(n, place), saved(n, place), dx(n, place);
        std::copy_n(grads.begin(), n, grad.begin());
        std::copy_n(all.begin(), n, saved.begin());
        // Into memory of its own, of the gradient, of what was saved.
        T* const to[] = {dx.data(), grad.data(), saved.data()};
        T* const out = to[n % 3];
        kernel(grad.data(), saved.data(), out, static_cast<int64_t>(n), f.parameters);
        for (std::size_t i = 0; i < n; ++i) CHECK(same_bits(out[i], expected[i]));
      }
    });
  });
}

// ---- PReLU -------------------------------------------------------------------------------------

FASTACT_TEST(prelu) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    Random random;
    for (std::size_t n = 1; n <= kMost; ++n) {
      for (int step : {0, 1}) {
        const Context context("%zu elements, step %d", n, step);
        const Place place = n % 2 ? Place::kBehindTheWall : Place::kBeforeTheWall;
        Walled<T> x(n, place), slope(step ? n : 1, place), y(n, place);
        fill(x, random, -3, 3);
        fill(slope, random, -1, 1);
        kernels_of<T>().prelu(x.data(), slope.data(), step, y.data(), static_cast<int64_t>(n));
        for (std::size_t i = 0; i < n; ++i) {
          const double value = value_of(x[i]), s = value_of(slope[step ? i : 0]);
          CHECK_SAME(value_of(y[i]), value_of(rounded<T>(value > 0 ? value : value * s)));
        }
      }
    }
  });
}

FASTACT_TEST(prelu_backward) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    using C = compute_t<T>;
    Random random;
    for (std::size_t n = 1; n <= kMost; ++n) {
      for (int what = 0; what < 8; ++what) {
        const int step = what & 1;
        const bool wants_dx = what & 2, wants_dslope = what & 4;
        const Context context("%zu elements, step %d, dx %d, dslope %d", n, step, wants_dx,
                              wants_dslope);
        const Place place = n % 2 ? Place::kBehindTheWall : Place::kBeforeTheWall;
        const std::size_t slopes = step ? n : 1;
        Walled<T> x(n, place), grad(n, place), slope(slopes, place), dx(n, place);
        Walled<C> dslope(slopes, place);
        for (T& one : x) one = rounded<T>(static_cast<double>(random.integer(-8, 8)));
        for (T& one : grad) one = rounded<T>(static_cast<double>(random.integer(-8, 8)));
        fill(slope, random, -1, 1);
        for (C& one : dslope) one = C(100);
        kernels_of<T>().prelu_backward(
            grad.data(), x.data(), slope.data(), step, wants_dx ? dx.data() : nullptr,
            wants_dslope ? dslope.data() : nullptr, static_cast<int64_t>(n));
        std::vector<double> added(slopes, 0.0);
        for (std::size_t i = 0; i < n; ++i) {
          const double value = value_of(x[i]), g = value_of(grad[i]);
          const double s = value_of(slope[step ? i : 0]);
          if (wants_dx) {
            CHECK_SAME(value_of(dx[i]), value_of(rounded<T>(value > 0 ? g : g * s)));
          }
          added[step ? i : 0] += value > 0 ? 0 : g * value;
        }
        // What was there stays in the sum, which is exact.
        for (std::size_t i = 0; i < slopes; ++i) {
          CHECK_SAME(double(dslope[i]), 100 + (wants_dslope ? added[i] : 0));
        }
      }
    }
  });
}

// ---- gated units -------------------------------------------------------------------------------

namespace {

struct GateFormula {
  Gate gate;
  double (*value)(double a);
  double (*slope)(double a);
};

template <class A>
constexpr GateFormula gate_of(Gate gate) {
  return {gate, [](double a) { return typename A::template Formula<double>(nullptr).forward(a); },
          [](double a) {
            const typename A::template Formula<double> f(nullptr);
            return f.backward(1.0, A::saves_output(nullptr) ? f.forward(a) : a);
          }};
}

const GateFormula kGates[] = {gate_of<Sigmoid>(kSigmoidGate), gate_of<Silu>(kSiluGate),
                              gate_of<Gelu>(kGeluGate), gate_of<Relu>(kReluGate)};
static_assert(std::size(kGates) == kNumGates);

}  // namespace

FASTACT_TEST(gated_units) {
  for_each_dtype([](auto type) {
    using T = decltype(type);
    for (const GateFormula& f : kGates) {
      Random random;
      for (std::size_t n :
           {std::size_t{0}, std::size_t{1}, std::size_t{15}, kMost, std::size_t{777}}) {
        const Context context("gate %d, %zu elements", f.gate, n);
        Walled<T> a(n), b(n), y(n), grad(n), da(n), db(n);
        fill(a, random, -9, 9);
        fill(b, random, -3, 3);
        fill(grad, random, -2, 2);
        const auto count = static_cast<int64_t>(n);
        kernels_of<T>().gated[f.gate](a.data(), b.data(), y.data(), count);
        kernels_of<T>().gated_backward[f.gate](grad.data(), a.data(), b.data(), da.data(),
                                               db.data(), count);
        for (std::size_t i = 0; i < n; ++i) {
          const double gate = f.value(value_of(a[i])), value = value_of(b[i]);
          const double g = value_of(grad[i]), slope = f.slope(value_of(a[i]));
          CHECK_NEAR(value_of(y[i]), gate * value, 2 * allowed<T>(gate * value));
          CHECK_NEAR(value_of(db[i]), gate * g, 2 * allowed<T>(gate * g));
          CHECK_NEAR(value_of(da[i]), g * value * slope, 2 * allowed<T>(g * value * slope));
        }
      }
    }
  });
}

int main(int count, char** arguments) { return run_with(all_tables, kernels, count, arguments); }
