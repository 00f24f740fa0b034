// Pack<V, U>: U vectors side by side, with the whole vocabulary of one. A formula written once then
// issues every operation for U independent vectors, which hides the latency of its chain, and asks
// any() once for all of them.
#pragma once

#include <cstdint>

#include "math/scalar.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Each width defines these two.
template <class T>
struct Vec;  // one register of lanes of type T: float, double, int32_t, int64_t
template <class T>
struct LaneMask;  // one truth value per lane of Vec<T>

template <class I, int U>
struct IntPack {
  using scalar = typename I::scalar;
  I part[U];

  IntPack() = default;
  FASTACT_FN explicit IntPack(scalar x) {
    FASTACT_UNROLL for (int u = 0; u < U; ++u) part[u] = I(x);
  }
};

template <class M, int U>
struct MaskPack {
  M part[U];
};

template <class V, int U, class P = Full>
struct Pack {
  using Part = V;
  using scalar = typename V::scalar;
  using Int = IntPack<typename V::Int, U>;
  using Mask = MaskPack<typename V::Mask, U>;
  static constexpr int size = U * V::size;
  static constexpr bool has_lookup = V::has_lookup;
  static constexpr int lookup_entries = V::lookup_entries;
  static constexpr bool has_fma = V::has_fma;

  V part[U];

  Pack() = default;
  FASTACT_FN explicit Pack(scalar x) { FASTACT_UNROLL for (int u = 0; u < U; ++u) part[u] = V(x); }
  FASTACT_FN Pack(V first, V second) : part{first, second} {}
  static FASTACT_FN Pack broadcast(V v) {
    Pack r;
    FASTACT_UNROLL for (int u = 0; u < U; ++u) r.part[u] = v;
    return r;
  }

  template <class T>
  static FASTACT_FN Pack load(const T* p) {
    Pack r;
    FASTACT_UNROLL for (int u = 0; u < U; ++u) r.part[u] = V::load(p + u * V::size);
    return r;
  }
  template <class T>
  static FASTACT_FN Pack load(const T* p, int n) {
    Pack r;
    FASTACT_UNROLL for (int u = 0; u < U; ++u) r.part[u] = V::load(p + u * V::size, count(n, u));
    return r;
  }
  template <class T>
  FASTACT_FN void store(T* p) const {
    FASTACT_UNROLL for (int u = 0; u < U; ++u) part[u].store(p + u * V::size);
  }
  template <class T>
  FASTACT_FN void store(T* p, int n) const {
    FASTACT_UNROLL for (int u = 0; u < U; ++u) part[u].store(p + u * V::size, count(n, u));
  }

 private:
  // How many of the first n lanes lie in vector u.
  static FASTACT_FN int count(int n, int u) {
    const int rest = n - u * V::size;
    return rest < 0 ? 0 : rest > V::size ? V::size : rest;
  }
};

template <class V, int U>
constexpr bool kIsShort<Pack<V, U, Short>> = true;

#define FASTACT_EACH FASTACT_UNROLL for (int u = 0; u < U; ++u) r.part[u]
#define FASTACT_PACK_1(name)              \
  template <class V, int U, class P>      \
  FASTACT_FN auto name(Pack<V, U, P> a) { \
    Pack<V, U, P> r;                      \
    FASTACT_EACH = name(a.part[u]);       \
    return r;                             \
  }
#define FASTACT_PACK_2(name)                               \
  template <class V, int U, class P>                       \
  FASTACT_FN auto name(Pack<V, U, P> a, Pack<V, U, P> b) { \
    Pack<V, U, P> r;                                       \
    FASTACT_EACH = name(a.part[u], b.part[u]);             \
    return r;                                              \
  }
#define FASTACT_PACK_3(name)                                                \
  template <class V, int U, class P>                                        \
  FASTACT_FN auto name(Pack<V, U, P> a, Pack<V, U, P> b, Pack<V, U, P> c) { \
    Pack<V, U, P> r;                                                        \
    FASTACT_EACH = name(a.part[u], b.part[u], c.part[u]);                   \
    return r;                                                               \
  }
#define FASTACT_PACK_COMPARE(name)                         \
  template <class V, int U, class P>                       \
  FASTACT_FN auto name(Pack<V, U, P> a, Pack<V, U, P> b) { \
    typename Pack<V, U, P>::Mask r;                        \
    FASTACT_EACH = name(a.part[u], b.part[u]);             \
    return r;                                              \
  }
#define FASTACT_MASK_2(name)                                 \
  template <class M, int U>                                  \
  FASTACT_FN auto name(MaskPack<M, U> a, MaskPack<M, U> b) { \
    MaskPack<M, U> r;                                        \
    FASTACT_EACH = name(a.part[u], b.part[u]);               \
    return r;                                                \
  }
#define FASTACT_INT_2(name)                                \
  template <class I, int U>                                \
  FASTACT_FN auto name(IntPack<I, U> a, IntPack<I, U> b) { \
    IntPack<I, U> r;                                       \
    FASTACT_EACH = name(a.part[u], b.part[u]);             \
    return r;                                              \
  }

FASTACT_PACK_1(operator-)
FASTACT_PACK_1(abs)
FASTACT_PACK_1(round)
FASTACT_PACK_1(power_of_two)
FASTACT_PACK_2(operator+)
FASTACT_PACK_2(operator-)
FASTACT_PACK_2(operator*)
FASTACT_PACK_2(operator/)
FASTACT_PACK_2(min)
FASTACT_PACK_2(max)
FASTACT_PACK_2(copysign)
FASTACT_PACK_2(scale)
FASTACT_PACK_2(scale_down)
FASTACT_PACK_3(fma)
FASTACT_PACK_3(fnma)
FASTACT_PACK_COMPARE(operator<)
FASTACT_PACK_COMPARE(operator<=)
FASTACT_PACK_COMPARE(operator>)
FASTACT_PACK_COMPARE(operator>=)
FASTACT_PACK_COMPARE(operator==)
FASTACT_PACK_COMPARE(operator!=)
FASTACT_MASK_2(operator&)
FASTACT_MASK_2(operator|)
FASTACT_INT_2(operator+)
FASTACT_INT_2(operator-)
FASTACT_INT_2(operator&)
FASTACT_INT_2(operator|)
FASTACT_INT_2(max)

#undef FASTACT_PACK_1
#undef FASTACT_PACK_2
#undef FASTACT_PACK_3
#undef FASTACT_PACK_COMPARE
#undef FASTACT_MASK_2
#undef FASTACT_INT_2

template <class M, int U>
FASTACT_FN MaskPack<M, U> operator!(MaskPack<M, U> a) {
  MaskPack<M, U> r;
  FASTACT_EACH = !a.part[u];
  return r;
}

template <class V, int U, class P>
FASTACT_FN MaskPack<typename V::Mask, U> isnan(Pack<V, U, P> a) {
  MaskPack<typename V::Mask, U> r;
  FASTACT_EACH = isnan(a.part[u]);
  return r;
}

template <class V, int U, class P>
FASTACT_FN Pack<V, U, P> select(MaskPack<typename V::Mask, U> mask, Pack<V, U, P> if_true,
                                Pack<V, U, P> if_false) {
  Pack<V, U, P> r;
  FASTACT_EACH = select(mask.part[u], if_true.part[u], if_false.part[u]);
  return r;
}

template <class V, int U, class P>
FASTACT_FN IntPack<typename V::Int, U> to_bits(Pack<V, U, P> a) {
  IntPack<typename V::Int, U> r;
  FASTACT_EACH = to_bits(a.part[u]);
  return r;
}

template <class W, class I, int U>
FASTACT_FN W from_bits(IntPack<I, U> a) {
  W r;
  FASTACT_EACH = from_bits<typename W::Part>(a.part[u]);
  return r;
}

template <int kBits, class I, int U>
FASTACT_FN IntPack<I, U> shift_left(IntPack<I, U> a) {
  IntPack<I, U> r;
  FASTACT_EACH = shift_left<kBits>(a.part[u]);
  return r;
}
template <int kBits, class I, int U>
FASTACT_FN IntPack<I, U> shift_right(IntPack<I, U> a) {
  IntPack<I, U> r;
  FASTACT_EACH = shift_right<kBits>(a.part[u]);
  return r;
}

template <class W, int kEntries, class I, int U>
FASTACT_FN W lookup(const float (&table)[kEntries], IntPack<I, U> index) {
  W r;
  FASTACT_EACH = lookup<typename W::Part>(table, index.part[u]);
  return r;
}

#undef FASTACT_EACH

// widen and narrow: a float vector makes two vectors of double lanes in every width.
template <class P, class T>
FASTACT_FN auto widen(Vec<T> a) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return a;
  } else {
    Pack<Vec<double>, 2, P> r;
    split(a, &r.part[0], &r.part[1]);
    return r;
  }
}
template <class P, int U>
FASTACT_FN Pack<Vec<double>, 2 * U, P> widen(Pack<Vec<float>, U> a) {
  Pack<Vec<double>, 2 * U, P> r;
  FASTACT_UNROLL for (int u = 0; u < U; ++u) {
    split(a.part[u], &r.part[2 * u], &r.part[2 * u + 1]);
  }
  return r;
}
template <class P, int U, class Q>
FASTACT_FN Pack<Vec<double>, U, Q> widen(Pack<Vec<double>, U, Q> a) {
  return a;
}
template <class P>
FASTACT_FN void join(Pack<Vec<double>, 2, P> a, Vec<float>* to) {
  *to = join(a.part[0], a.part[1]);
}
template <class P, int U>
FASTACT_FN void join(Pack<Vec<double>, 2 * U, P> a, Pack<Vec<float>, U>* to) {
  FASTACT_UNROLL for (int u = 0; u < U; ++u) {
    to->part[u] = join(a.part[2 * u], a.part[2 * u + 1]);
  }
}

// f(part of a, part of b), by parts of two registers.
template <class V, int U, class P, class F>
FASTACT_FN Pack<V, U, P> map_pairs(Pack<V, U, P> a, Pack<V, U, P> b, F f) {
  if constexpr (U % 2 != 0) {
    return f(a, b);
  } else {
    Pack<V, U, P> r;
    FASTACT_UNROLL for (int u = 0; u < U; u += 2) {
      const Pack<V, 2, P> pair =
          f(Pack<V, 2, P>(a.part[u], a.part[u + 1]), Pack<V, 2, P>(b.part[u], b.part[u + 1]));
      r.part[u] = pair.part[0];
      r.part[u + 1] = pair.part[1];
    }
    return r;
  }
}
template <class T, class F>
FASTACT_FN Vec<T> map_pairs(Vec<T> a, Vec<T> b, F f) {
  return f(a, b);
}

// Widths that define sum_eight() set it to true.
template <class V>
constexpr bool kSumsTogether = false;

// One question for the whole group.
template <class M, int U>
FASTACT_FN bool any(MaskPack<M, U> mask) {
  M all = mask.part[0];
  FASTACT_UNROLL for (int u = 1; u < U; ++u) all = all | mask.part[u];
  return any(all);
}
template <class I, int U>
FASTACT_FN bool any_greater(IntPack<I, U> a, typename I::scalar limit) {
  I most = a.part[0];
  FASTACT_UNROLL for (int u = 1; u < U; ++u) most = max(most, a.part[u]);
  return any_greater(most, limit);
}

// Sum and maximum of all lanes, in an order that depends on the type alone.
template <class V, int U, class P>
FASTACT_FN typename V::scalar horizontal_sum(Pack<V, U, P> a) {
  V sum = a.part[0];
  FASTACT_UNROLL for (int u = 1; u < U; ++u) sum = sum + a.part[u];
  return horizontal_sum(sum);
}
template <class V, int U, class P>
FASTACT_FN typename V::scalar horizontal_max(Pack<V, U, P> a) {
  V most = a.part[0];
  FASTACT_UNROLL for (int u = 1; u < U; ++u) most = max(most, a.part[u]);
  return horizontal_max(most);
}

// The sums of N registers, each in the order of horizontal_sum().
template <class V, int N>
FASTACT_FN void horizontal_sums(const V (&v)[N], typename V::scalar* to) {
  constexpr int kTogether = kSumsTogether<V> ? N / 8 * 8 : 0;
  if constexpr (kTogether > 0) {
    FASTACT_UNROLL for (int i = 0; i < kTogether; i += 8) sum_eight(&v[i], to + i);
  }
  FASTACT_UNROLL for (int i = kTogether; i < N; ++i) to[i] = horizontal_sum(v[i]);
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
