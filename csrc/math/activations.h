// The activations: one struct each, and the list of all of them.
//
// `parameters` gives PyTorch's names and defaults (a function without parameters has one empty row,
// since an array needs one). `cost` is the cycles that 16 float elements take, forward, with
// AVX-512 and data in the L1; it decides how many elements a thread is worth.
// `saves_output` says what backward() reads: the output where it determines the derivative, else
// the input. Formula<V> holds the parameters, broadcast once, for V a scalar, a vector or a Pack.
//
// The order of the comparisons in backward() decides what a NaN gets: what PyTorch's scalar code
// gives (its vector code differs in some).
#pragma once

#include "math/elu.h"
#include "math/exp.h"
#include "math/gelu.h"
#include "math/log.h"
#include "math/scalar.h"
#include "math/sigmoid.h"
#include "math/softsign.h"
#include "math/tanh.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

struct Parameter {
  const char* name;
  double value;
};

struct Relu {
  static constexpr const char* name = "relu";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 2;
  static bool saves_output(const double*) { return true; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return max(V(0), x); }
    FASTACT_FN V backward(V grad, V y) const { return select(y <= V(0), V(0), grad); }
  };
};

struct Relu6 {
  static constexpr const char* name = "relu6";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 2;
  static bool saves_output(const double*) { return true; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return min(V(6), max(V(0), x)); }
    FASTACT_FN V backward(V grad, V y) const {
      return select((y <= V(0)) | (y >= V(6)), V(0), grad);
    }
  };
};

struct LeakyRelu {
  static constexpr const char* name = "leaky_relu";
  static constexpr int num_parameters = 1;
  static constexpr Parameter parameters[] = {{"negative_slope", 0.01}};
  static constexpr int cost = 2;
  static bool saves_output(const double* p) { return p[0] >= 0; }

  template <class V>
  struct Formula {
    V slope;
    FASTACT_FN explicit Formula(const double* p) : slope(broadcast<V>(p[0])) {}
    FASTACT_FN V forward(V x) const { return select(x > V(0), x, x * slope); }
    // With a slope that is not negative, output and input have one sign.
    FASTACT_FN V backward(V grad, V saved) const {
      return select(saved > V(0), grad, grad * slope);
    }
  };
};

// PReLU: leaky_relu with a slope that is learned.
struct Prelu {
  template <class V>
  static FASTACT_FN V forward(V x, V slope) {
    return select(x > V(0), x, x * slope);
  }
  template <class V>
  static FASTACT_FN V backward_input(V grad, V x, V slope) {
    return select(x > V(0), grad, grad * slope);
  }
  // What this element adds to the gradient of its slope.
  template <class V>
  static FASTACT_FN V backward_slope(V grad, V x) {
    return select(x > V(0), V(0), grad * x);
  }
};

struct Elu {
  static constexpr const char* name = "elu";
  static constexpr int num_parameters = 1;
  static constexpr Parameter parameters[] = {{"alpha", 1.0}};
  static constexpr int cost = 7;
  static bool saves_output(const double* p) { return p[0] >= 0; }

  template <class V>
  struct Formula : ExponentialUnit<V> {
    FASTACT_FN explicit Formula(const double* p) : ExponentialUnit<V>(1, p[0], 1) {}
  };
};

struct Celu {
  static constexpr const char* name = "celu";
  static constexpr int num_parameters = 1;
  static constexpr Parameter parameters[] = {{"alpha", 1.0}};
  static constexpr int cost = 7;
  static bool saves_output(const double* p) { return p[0] >= 0; }

  template <class V>
  struct Formula : ExponentialUnit<V> {
    FASTACT_FN explicit Formula(const double* p) : ExponentialUnit<V>(1, p[0], 1 / p[0]) {}
  };
};

struct Selu {
  static constexpr const char* name = "selu";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 8;
  static bool saves_output(const double*) { return true; }

  template <class V>
  struct Formula : ExponentialUnit<V> {
    FASTACT_FN explicit Formula(const double*)
        : ExponentialUnit<V>(kSeluScale, kSeluScale * kSeluAlpha, 1) {}
    FASTACT_FN V forward(V x) const {
      if constexpr (kHasLookup<V>) {
        return by_table::selu(x);
      } else {
        return ExponentialUnit<V>::forward(x);
      }
    }
  };
};

struct Gelu {
  static constexpr const char* name = "gelu";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 7;
  static bool saves_output(const double*) { return false; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return gelu(x); }
    FASTACT_FN V backward(V grad, V x) const { return grad * gelu_slope(x); }
  };
};

struct GeluTanh {
  static constexpr const char* name = "gelu_tanh";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 10;
  static bool saves_output(const double*) { return false; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return gelu_tanh(x); }
    FASTACT_FN V backward(V grad, V x) const { return grad * gelu_tanh_slope(x); }
  };
};

struct Silu {
  static constexpr const char* name = "silu";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 9;
  static bool saves_output(const double*) { return false; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return silu(x); }
    FASTACT_FN V backward(V grad, V x) const { return grad * silu_slope(x); }
  };
};

struct Mish {
  static constexpr const char* name = "mish";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 10;
  static bool saves_output(const double*) { return false; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return mish(x); }
    FASTACT_FN V backward(V grad, V x) const { return grad * mish_slope(x); }
  };
};

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 7;
  static bool saves_output(const double*) { return true; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return sigmoid(x); }
    FASTACT_FN V backward(V grad, V y) const { return grad * (y * (V(1) - y)); }
  };
};

struct Logsigmoid {
  static constexpr const char* name = "logsigmoid";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 7;
  static bool saves_output(const double*) { return true; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return logsigmoid(x); }
    // The derivative is 1 - sigmoid(x) = 1 - e^y.
    FASTACT_FN V backward(V grad, V y) const { return grad * -expm1_of_negative(y); }
  };
};

struct Tanh {
  static constexpr const char* name = "tanh";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 7;
  static bool saves_output(const double*) { return true; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return tanh(x); }
    // 1 - y^2 without cancellation.
    FASTACT_FN V backward(V grad, V y) const { return grad * ((V(1) - y) * (V(1) + y)); }
  };
};

struct Hardtanh {
  static constexpr const char* name = "hardtanh";
  static constexpr int num_parameters = 2;
  static constexpr Parameter parameters[] = {{"min_val", -1.0}, {"max_val", 1.0}};
  static constexpr int cost = 2;
  static bool saves_output(const double*) { return true; }

  template <class V>
  struct Formula {
    V low;
    V high;
    bool has_nan;  // a bound that is NaN makes every output NaN, as torch.clamp's
    FASTACT_FN explicit Formula(const double* p)
        : low(broadcast<V>(p[0])),
          high(broadcast<V>(p[1])),
          has_nan(p[0] != p[0] || p[1] != p[1]) {}
    FASTACT_FN V forward(V x) const {
      return has_nan ? broadcast<V>(__builtin_nan("")) : min(high, max(low, x));
    }
    FASTACT_FN V backward(V grad, V y) const {
      return select((y <= low) | (y >= high), V(0), grad);
    }
  };
};

struct Hardsigmoid {
  static constexpr const char* name = "hardsigmoid";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 3;
  static bool saves_output(const double*) { return false; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return min(V(6), max(V(0), x + V(3))) / V(6); }
    FASTACT_FN V backward(V grad, V x) const {
      return select((x > V(-3)) & (x < V(3)), grad * broadcast<V>(1.0 / 6.0), V(0));
    }
  };
};

struct Hardswish {
  static constexpr const char* name = "hardswish";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 3;
  static bool saves_output(const double*) { return false; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    // Held at -3, x = -infinity gives the limit -0, not NaN.
    FASTACT_FN V forward(V x) const {
      const V held = max(V(-3), x);
      return select(x < V(3), held * (held + V(3)) / V(6), x);
    }
    // (2 x + 3) / 6 between; x + 1.5 is exact where the result is small.
    FASTACT_FN V backward(V grad, V x) const {
      const V inner = grad * ((x + V(1.5)) * broadcast<V>(1.0 / 3.0));
      return select(x <= V(-3), V(0), select(x < V(3), inner, grad));
    }
  };
};

struct Softplus {
  static constexpr const char* name = "softplus";
  static constexpr int num_parameters = 2;
  static constexpr Parameter parameters[] = {{"beta", 1.0}, {"threshold", 20.0}};
  static constexpr int cost = 6;
  static bool saves_output(const double*) { return false; }

  template <class V>
  struct Formula {
    // beta x is not rounded to V: e^(beta x) would lose as many digits as beta x has before the
    // point.
    using W = decltype(widen<Short>(V()));
    W beta;
    W inverse;
    V short_beta;
    V threshold;
    // beta is 1, and above the threshold softplus(x) rounds to x anyway.
    bool plain;
    FASTACT_FN explicit Formula(const double* p)
        : beta(broadcast<W>(p[0])),
          inverse(broadcast<W>(1 / p[0])),
          short_beta(broadcast<V>(p[0])),
          threshold(broadcast<V>(p[1])),
          plain(p[0] == 1 && p[1] >= (kIsDouble<V> ? 37 : 18)) {}
    FASTACT_FN V forward(V x) const {
      if (plain) return softplus(x);
      const V y = narrow<V>(softplus(widen<Short>(x) * beta) * inverse);
      return select(x * short_beta > threshold, x, y);
    }
    FASTACT_FN V backward(V grad, V x) const {
      if (plain) return grad * sigmoid(x);
      const V slope = narrow<V>(sigmoid(widen<Short>(x) * beta));
      return select(x * short_beta > threshold, grad, grad * slope);
    }
  };
};

struct Softsign {
  static constexpr const char* name = "softsign";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 5;
  static bool saves_output(const double*) { return false; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return softsign(x); }
    // Not by d^2, which overflows before the result underflows.
    FASTACT_FN V backward(V grad, V x) const {
      const V d = V(1) + abs(x);
      return (grad / d) / d;
    }
  };
};

struct Tanhshrink {
  static constexpr const char* name = "tanhshrink";
  static constexpr int num_parameters = 0;
  static constexpr Parameter parameters[] = {{nullptr, 0}};
  static constexpr int cost = 10;
  static bool saves_output(const double*) { return false; }

  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return tanhshrink(x); }
    FASTACT_FN V backward(V grad, V x) const {
      const V t = tanh(x);
      const V square = t * t;
      // What rounding the square lost counts, since t's own error is in it twice.
      return kHasFma<V> ? fma(grad, square, grad * fma(t, t, -square)) : grad * square;
    }
  };
};

struct Softshrink {
  static constexpr const char* name = "softshrink";
  static constexpr int num_parameters = 1;
  static constexpr Parameter parameters[] = {{"lambd", 0.5}};
  static constexpr int cost = 3;
  static bool saves_output(const double* p) { return p[0] >= 0; }

  template <class V>
  struct Formula {
    V lambda;
    FASTACT_FN explicit Formula(const double* p) : lambda(broadcast<V>(p[0])) {}
    FASTACT_FN V forward(V x) const {
      const V shrunk = select(x > lambda, x - lambda, x + lambda);
      return select((x >= -lambda) & (x <= lambda), V(0), shrunk);
    }
    FASTACT_FN V backward(V grad, V y) const {
      return select((y >= V(0)) & (y <= V(0)), V(0), grad);
    }
  };
};

struct Hardshrink {
  static constexpr const char* name = "hardshrink";
  static constexpr int num_parameters = 1;
  static constexpr Parameter parameters[] = {{"lambd", 0.5}};
  static constexpr int cost = 2;
  static bool saves_output(const double* p) { return p[0] >= 0; }

  template <class V>
  struct Formula {
    V lambda;
    bool from_output;
    FASTACT_FN explicit Formula(const double* p)
        : lambda(broadcast<V>(p[0])), from_output(p[0] >= 0) {}
    FASTACT_FN V forward(V x) const { return select((x >= -lambda) & (x <= lambda), V(0), x); }
    FASTACT_FN V backward(V grad, V saved) const {
      const V edge = from_output ? V(0) : lambda;
      return select((saved >= -edge) & (saved <= edge), V(0), grad);
    }
  };
};

struct Threshold {
  static constexpr const char* name = "threshold";
  static constexpr int num_parameters = 2;
  static constexpr Parameter parameters[] = {{"threshold", 0.0}, {"value", 0.0}};
  static constexpr int cost = 2;
  static bool saves_output(const double* p) { return p[1] <= p[0]; }

  template <class V>
  struct Formula {
    V threshold;
    V value;
    FASTACT_FN explicit Formula(const double* p)
        : threshold(broadcast<V>(p[0])), value(broadcast<V>(p[1])) {}
    FASTACT_FN V forward(V x) const { return select(x <= threshold, value, x); }
    // With a value that is not above the threshold, the output tells the same as the input.
    FASTACT_FN V backward(V grad, V saved) const { return select(saved <= threshold, V(0), grad); }
  };
};

template <class... A>
struct ActivationList {};

using Activations =
    ActivationList<Relu, Relu6, LeakyRelu, Elu, Selu, Celu, Gelu, GeluTanh, Silu, Mish, Sigmoid,
                   Logsigmoid, Tanh, Hardtanh, Hardsigmoid, Hardswish, Softplus, Softsign,
                   Tanhshrink, Softshrink, Hardshrink, Threshold>;

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
