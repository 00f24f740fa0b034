// What follows a matrix product, in place over its result: bias, residual, activation; and backward
// the gradient before the activation with the bias's, in one pass. Matrices are [rows][columns].
#pragma once

#include "cuda/kernels/columns.h"
#include "cuda/kernels/elementwise.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// No activation.
struct Identity {
  template <class V>
  struct Formula {
    FASTACT_FN explicit Formula(const double*) {}
    FASTACT_FN V forward(V x) const { return x; }
    FASTACT_FN V backward(V grad, V) const { return grad; }
  };
};

// y = act(x + bias + residual); null where there is none. `kept` gets the value before the
// activation.
template <class A, class T>
struct Epilogue {
  FormulaOf<A, T> formula;
  const T* x;
  const T* bias;
  const T* residual;
  T* kept;
  T* y;
  int64_t columns;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    using V = Values<T, kCount>;
    V v = V::load(x + i);
    if (bias) {
      const V b = V::load(bias + (i - divide(i, columns) * columns));
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) v.at[k] += b.at[k];
    }
    if (residual) {
      const V r = V::load(residual + i);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) v.at[k] += r.at[k];
    }
    if (kept) v.store(kept + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) v.at[k] = formula.forward(v.at[k]);
    v.store(y + i);
  }
};

template <class A, class T>
void epilogue(const T* x, const T* bias, const T* residual, T* kept, T* y, int64_t rows,
              int64_t columns, const double* parameters, cudaStream_t stream) {
  const bool wide = is_aligned(x) && is_aligned(residual) && is_aligned(kept) && is_aligned(y) &&
                    (!bias || (columns % kLanes<T> == 0 && is_aligned(bias)));
  launch_for_each<T>(
      Epilogue<A, T>{FormulaOf<A, T>(parameters), x, bias, residual, kept, y, columns},
      rows * columns, wide, stream);
}

template <class A, class T>
struct EpilogueBackward {
  FormulaOf<A, T> formula;
  const T* grad;
  const T* saved;
  T* dz;  // may be grad
  int64_t columns;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t row, int64_t column, compute_t<T>* sums) const {
    const int64_t i = row * columns + column;
    auto g = Values<T, kCount>::load(grad + i);
    const auto s = Values<T, kCount>::load(saved + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      g.at[k] = formula.backward(g.at[k], s.at[k]);
      sums[k] += g.at[k];
    }
    g.store(dz + i);
  }
};

// `parts` holds column_parts(rows) * columns elements.
template <class A, class T>
void epilogue_backward(const T* grad, const T* saved, T* dz, T* dbias, compute_t<T>* parts,
                       int64_t rows, int64_t columns, const double* parameters,
                       cudaStream_t stream) {
  const bool wide =
      columns % kLanes<T> == 0 && is_aligned(grad) && is_aligned(saved) && is_aligned(dz);
  sum_columns<T>(EpilogueBackward<A, T>{FormulaOf<A, T>(parameters), grad, saved, dz, columns},
                 parts, dbias, rows, columns, wide, stream);
}

// The gradient of a bias that no activation follows.
template <class T>
void bias_backward(const T* grad, T* dbias, compute_t<T>* parts, int64_t rows, int64_t columns,
                   cudaStream_t stream) {
  const bool wide = columns % kLanes<T> == 0 && is_aligned(grad);
  sum_columns<T>(SumColumns<T>{grad, columns}, parts, dbias, rows, columns, wide, stream);
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
