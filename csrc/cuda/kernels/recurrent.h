// One step of a recurrent layer's cells, forward and backward; the formulas stand in
// math/recurrent.h. Matrices have a row per sequence: [rows][units], and gates side by side,
// [rows][gates * units], in PyTorch's order (r z n, and i f g o). What a call does not need is
// null.
#pragma once

#include "cuda/kernels/for_each.h"
#include "math/recurrent.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Of result i the position in a matrix of `gates` gates.
__device__ __forceinline__ int64_t gate_position(int64_t i, int64_t units, int gates) {
  return i + divide(i, units) * units * (gates - 1);
}

// from_x = W_ih x + b_ih and from_h = W_hh h + b_hh. `activated` gets the gates (and, of a GRU, a
// fourth one: the new gate's sum from h), for backward.
template <class T, bool kTanh>
struct RnnStep {
  const T* from_x;
  const T* from_h;
  T* h;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    using V = Values<T, kCount>;
    V v = V::load(from_x + i);
    const V w = V::load(from_h + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      const compute_t<T> sum = v.at[k] + w.at[k];
      v.at[k] = kTanh ? gate_tanh(sum) : max(compute_t<T>(0), sum);
    }
    v.store(h + i);
  }
};

template <class T>
struct LstmStep {
  static constexpr bool kManyRegisters = true;
  const T* from_x;
  const T* from_h;
  const T* c_before;
  T* h;
  T* c;  // may be c_before
  T* activated;
  int64_t units;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    using C = compute_t<T>;
    using V = Values<T, kCount>;
    const int64_t at = gate_position(i, units, 4);
    V gate[4];
    FASTACT_UNROLL for (int g = 0; g < 4; ++g) {
      gate[g] = V::load(from_x + at + g * units);
      const V w = V::load(from_h + at + g * units);
      FASTACT_UNROLL for (int k = 0; k < kCount; ++k) gate[g].at[k] += w.at[k];
    }
    V cell = V::load(c_before + i);
    V out;
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      const auto g =
          LstmGates<C>::activated(gate[0].at[k], gate[1].at[k], gate[2].at[k], gate[3].at[k]);
      cell.at[k] = g.cell(cell.at[k]);
      out.at[k] = g.hidden(cell.at[k]);
      gate[0].at[k] = g.i;
      gate[1].at[k] = g.f;
      gate[2].at[k] = g.g;
      gate[3].at[k] = g.o;
    }
    cell.store(c + i);
    out.store(h + i);
    if (activated) {
      FASTACT_UNROLL for (int g = 0; g < 4; ++g) gate[g].store(activated + at + g * units);
    }
  }
};

template <class T>
struct GruStep {
  static constexpr bool kManyRegisters = true;
  const T* from_x;
  const T* from_h;
  const T* h_before;
  T* h;  // may be h_before
  T* activated;
  int64_t units;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    using C = compute_t<T>;
    using V = Values<T, kCount>;
    const int64_t at = gate_position(i, units, 3);
    V x[3];
    V w[3];
    FASTACT_UNROLL for (int g = 0; g < 3; ++g) {
      x[g] = V::load(from_x + at + g * units);
      w[g] = V::load(from_h + at + g * units);
    }
    V out = V::load(h_before + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      const auto g = GruGates<C>::activated(x[0].at[k] + w[0].at[k], x[1].at[k] + w[1].at[k],
                                            x[2].at[k], w[2].at[k]);
      out.at[k] = g.hidden(out.at[k]);
      x[0].at[k] = g.r;
      x[1].at[k] = g.z;
      x[2].at[k] = g.n;
    }
    out.store(h + i);
    if (activated) {
      T* const to = activated + gate_position(i, units, 4);
      FASTACT_UNROLL for (int g = 0; g < 3; ++g) x[g].store(to + g * units);
      w[2].store(to + 3 * units);
    }
  }
};

// ---- backward: `dh` is the gradient of h, `gradients` gets those of the sums -------------------

template <class T, bool kTanh>
struct RnnStepBackward {
  const T* dh;
  const T* h;
  T* gradients;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    using C = compute_t<T>;
    using V = Values<T, kCount>;
    V d = V::load(dh + i);
    const V v = V::load(h + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      d.at[k] = kTanh ? d.at[k] * tanh_slope(v.at[k]) : select(v.at[k] <= C(0), C(0), d.at[k]);
    }
    d.store(gradients + i);
  }
};

template <class T>
struct LstmStepBackward {
  static constexpr bool kManyRegisters = true;
  const T* dh;
  const T* dc;  // by the step after, or null
  const T* activated;
  const T* c_before;
  const T* c;
  T* gradients;
  T* dc_before;  // may be dc
  int64_t units;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    using C = compute_t<T>;
    using V = Values<T, kCount>;
    const int64_t at = gate_position(i, units, 4);
    V gate[4];
    FASTACT_UNROLL for (int g = 0; g < 4; ++g) gate[g] = V::load(activated + at + g * units);
    const V d = V::load(dh + i);
    const V before = V::load(c_before + i);
    const V now = V::load(c + i);
    V d_cell;
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) d_cell.at[k] = 0;
    if (dc) d_cell = V::load(dc + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      const LstmGates<C> g{gate[0].at[k], gate[1].at[k], gate[2].at[k], gate[3].at[k]};
      const auto of_sums = g.backward(before.at[k], now.at[k], d.at[k], &d_cell.at[k]);
      gate[0].at[k] = of_sums.i;
      gate[1].at[k] = of_sums.f;
      gate[2].at[k] = of_sums.g;
      gate[3].at[k] = of_sums.o;
    }
    d_cell.store(dc_before + i);
    FASTACT_UNROLL for (int g = 0; g < 4; ++g) gate[g].store(gradients + at + g * units);
  }
};

// Gradients are r z n_h n_x: the new gate's sum from h and from x, so that W_hh's are neighbours.
template <class T>
struct GruStepBackward {
  static constexpr bool kManyRegisters = true;
  const T* dh;
  const T* activated;
  const T* h_before;
  T* gradients;
  T* dh_before;  // but through the sums; may be dh
  int64_t units;

  template <int kCount>
  __device__ __forceinline__ void run(int64_t i) const {
    using C = compute_t<T>;
    using V = Values<T, kCount>;
    const int64_t at = gate_position(i, units, 4);
    V gate[4];
    FASTACT_UNROLL for (int g = 0; g < 4; ++g) gate[g] = V::load(activated + at + g * units);
    V d = V::load(dh + i);
    const V before = V::load(h_before + i);
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) {
      const GruGates<C> g{gate[0].at[k], gate[1].at[k], gate[2].at[k]};
      const auto of_sums = g.backward(before.at[k], gate[3].at[k], &d.at[k]);
      gate[0].at[k] = of_sums.r;
      gate[1].at[k] = of_sums.z;
      gate[2].at[k] = of_sums.n_h;
      gate[3].at[k] = of_sums.n_x;
    }
    d.store(dh_before + i);
    FASTACT_UNROLL for (int g = 0; g < 4; ++g) gate[g].store(gradients + at + g * units);
  }
};

// All pointers of a step; `units` must be whole accesses for wide ones.
template <class T, class... P>
bool is_wide_step(int64_t units, const P*... pointers) {
  return units % kLanes<T> == 0 && (is_aligned(pointers) && ...);
}

template <class T>
void rnn_step(const T* from_x, const T* from_h, T* h, int64_t rows, int64_t units, bool is_tanh,
              cudaStream_t stream) {
  const bool wide = is_wide_step<T>(kLanes<T>, from_x, from_h, h);
  if (is_tanh) {
    launch_for_each<T>(RnnStep<T, true>{from_x, from_h, h}, rows * units, wide, stream);
  } else {
    launch_for_each<T>(RnnStep<T, false>{from_x, from_h, h}, rows * units, wide, stream);
  }
}

template <class T>
void rnn_step_backward(const T* dh, const T* h, T* gradients, int64_t rows, int64_t units,
                       bool is_tanh, cudaStream_t stream) {
  const bool wide = is_wide_step<T>(kLanes<T>, dh, h, gradients);
  if (is_tanh) {
    launch_for_each<T>(RnnStepBackward<T, true>{dh, h, gradients}, rows * units, wide, stream);
  } else {
    launch_for_each<T>(RnnStepBackward<T, false>{dh, h, gradients}, rows * units, wide, stream);
  }
}

template <class T>
void lstm_step(const LstmStep<T>& s, int64_t rows, cudaStream_t stream) {
  const bool wide = is_wide_step<T>(s.units, s.from_x, s.from_h, s.c_before, s.h, s.c, s.activated);
  launch_for_each<T>(s, rows * s.units, wide, stream);
}
template <class T>
void lstm_step_backward(const LstmStepBackward<T>& s, int64_t rows, cudaStream_t stream) {
  const bool wide =
      is_wide_step<T>(s.units, s.dh, s.dc, s.activated, s.c_before, s.c, s.gradients, s.dc_before);
  launch_for_each<T>(s, rows * s.units, wide, stream);
}
template <class T>
void gru_step(const GruStep<T>& s, int64_t rows, cudaStream_t stream) {
  const bool wide = is_wide_step<T>(s.units, s.from_x, s.from_h, s.h_before, s.h, s.activated);
  launch_for_each<T>(s, rows * s.units, wide, stream);
}
template <class T>
void gru_step_backward(const GruStepBackward<T>& s, int64_t rows, cudaStream_t stream) {
  const bool wide =
      is_wide_step<T>(s.units, s.dh, s.activated, s.h_before, s.gradients, s.dh_before);
  launch_for_each<T>(s, rows * s.units, wide, stream);
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
