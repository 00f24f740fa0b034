// Reductions over a warp and over a block, in an order that is always the same.
#pragma once

#include "cuda/kernels/elements.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

struct Sum {
  template <class C>
  static __device__ __forceinline__ C identity() {
    return 0;
  }
  template <class C>
  static __device__ __forceinline__ C apply(C a, C b) {
    return a + b;
  }
};
// A NaN may be lost here: what is made of the maximum must notice it.
struct Max {
  template <class C>
  static __device__ __forceinline__ C identity() {
    return static_cast<C>(-INFINITY);
  }
  template <class C>
  static __device__ __forceinline__ C apply(C a, C b) {
    return max(a, b);
  }
};

// In all lanes.
template <class Operation, class C>
__device__ __forceinline__ C reduce_warp(C v) {
  FASTACT_UNROLL for (int step = kWarp / 2; step > 0; step /= 2) {
    v = Operation::apply(v, __shfl_xor_sync(kAllLanes, v, step));
  }
  return v;
}

// In all threads of a block of kWarps, of which each must call.
template <class Operation, int kWarps, class C>
__device__ __forceinline__ C reduce_block(C v) {
  static_assert(kWarps <= kWarp, "");
  v = reduce_warp<Operation>(v);
  if constexpr (kWarps == 1) {
    return v;
  } else {
    FASTACT_SHARED(C, of_warp, kWarps);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    __syncthreads();  // what an earlier one left has been read
    if (lane == 0) of_warp[warp] = v;
    __syncthreads();
    v = lane < kWarps ? of_warp[lane] : Operation::template identity<C>();
    return reduce_warp<Operation>(v);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
