// Skinny products: a few rows by a matrix whose elements along k are neighbours, as dot products.
#pragma once

#include "cpu/kernels/gemm_packing.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// M rows of x by N rows of w, both with neighbouring elements of k: w is read once, as it lies.
// Each sum is formed in the lanes of one register.
template <class T, int M, int N>
FASTACT_FN void dot_rows(const T* x, int64_t x_stride, const T* w, int64_t w_stride, int64_t k,
                         const compute_t<T>* bias, compute_t<T>* c, int64_t c_stride) {
  using G = Gemm<T>;
  using V = typename G::V;
  using C = typename G::C;
  constexpr int kElements = V::size * G::kDepth;
  V sum[M * N];
  FASTACT_UNROLL for (int i = 0; i < M * N; ++i) sum[i] = V(C(0));
  const auto add = [&](int64_t e, const auto& load) FASTACT_LAMBDA {
    V left[M];
    FASTACT_UNROLL for (int i = 0; i < M; ++i) left[i] = load(x + i * x_stride + e);
    FASTACT_UNROLL for (int j = 0; j < N; ++j) {
      const V right = load(w + j * w_stride + e);
      FASTACT_UNROLL for (int i = 0; i < M; ++i) {
        sum[i * N + j] = G::multiply_add(left[i], right, sum[i * N + j]);
      }
    }
  };
  int64_t e = 0;
  for (; e + kElements <= k; e += kElements) {
    add(e, [](const T* p) FASTACT_LAMBDA { return load_units(p, kElements); });
  }
  if (e < k) {
    add(e, [&](const T* p) FASTACT_LAMBDA { return load_units(p, k - e); });
  }
  alignas(64) C sums[M * N];
  horizontal_sums(sum, sums);
  FASTACT_UNROLL for (int i = 0; i < M; ++i) {
    FASTACT_UNROLL for (int j = 0; j < N; ++j) {
      c[i * c_stride + j] = sums[i * N + j] + (bias ? bias[j] : C(0));
    }
  }
}

template <class T, int M>
void dot_all(const GemmRows& r) {
  // As many rows of w as the registers hold sums for.
  constexpr int kFit = (Gemm<T>::kRegisters == 32 ? 24 : 12) / M;
  constexpr int N = M == 1 ? 8 : kFit > 6 ? 6 : kFit < 1 ? 1 : kFit;
  using C = compute_t<T>;
  const T* x = static_cast<const T*>(r.x);
  const T* w = static_cast<const T*>(r.w);
  const C* bias = static_cast<const C*>(r.bias);
  C* c = static_cast<C*>(r.c);
  int64_t j = 0;
  for (; j + N <= r.columns; j += N) {
    dot_rows<T, M, N>(x, r.x_stride, w + j * r.w_stride, r.w_stride, r.k, bias ? bias + j : bias,
                      c + j, r.c_stride);
  }
  for (; j < r.columns; ++j) {
    dot_rows<T, M, 1>(x, r.x_stride, w + j * r.w_stride, r.w_stride, r.k, bias ? bias + j : bias,
                      c + j, r.c_stride);
  }
}

template <class T>
void gemm_rows(const GemmRows& r) {
  switch (r.rows) {
    case 1:
      return dot_all<T, 1>(r);
    case 2:
      return dot_all<T, 2>(r);
    case 3:
      return dot_all<T, 3>(r);
    case 4:
      return dot_all<T, 4>(r);
    case 5:
      return dot_all<T, 5>(r);
    case 6:
      return dot_all<T, 6>(r);
    case 7:
      return dot_all<T, 7>(r);
    default:
      return dot_all<T, kMaxGemmRows>(r);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
