// `T` in kernels is the type in memory; 16-bit types are widened to float by the load, computed in
// float, and rounded once by the store.
#pragma once

#include "math/config.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using compute_t = typename ComputeType<T>::type;

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
