// Loops over arrays by vectors, with the tail written once.
#pragma once

#include "cpu/simd/width.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// f(i, count) for i = 0, V::size, ...: count is V::size, and less for the tail alone.
template <class V, class F>
FASTACT_FN void for_each_vector(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + V::size <= n; i += V::size) {
    f(i, static_cast<int>(V::size));
  }
  if (i < n) {
    f(i, static_cast<int>(n - i));
  }
}

// The first `count` lanes from memory, or to it.
template <class V, class T>
FASTACT_FN V load_lanes(const T* p, int count) {
  return count == V::size ? V::load(p) : V::load(p, count);
}
template <class V, class T>
FASTACT_FN void store_lanes(V v, T* p, int count) {
  count == V::size ? v.store(p) : v.store(p, count);
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
