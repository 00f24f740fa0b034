// Elements in memory and in registers. 16-bit types are computed in float and rounded once by the
// store; 16 bytes of neighbouring elements are one access where they are aligned.
#pragma once

#include "cuda/kernels/platform.h"
#include "math/compute_type.h"
#include "math/half.h"
#include "math/scalar.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// The widest access that a thread makes, and how many elements it holds.
constexpr int kAccessBytes = 16;
template <class T>
constexpr int kLanes = kAccessBytes / static_cast<int>(sizeof(T));

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kAccessBytes == 0; }

// math/half.h converts by integers; the device has an instruction.
__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ float widened(BFloat16 x) { return to_float(x); }
__device__ __forceinline__ float widened(Half x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return to_float(x);
#endif
}
__device__ __forceinline__ void round_to(float x, float* to) { *to = x; }
__device__ __forceinline__ void round_to(double x, double* to) { *to = x; }
__device__ __forceinline__ void round_to(float x, BFloat16* to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#else
  from_float(x, to);
#endif
}
__device__ __forceinline__ void round_to(float x, Half* to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#else
  from_float(x, to);
#endif
}

// One access. Left to nvcc 13.0, those of an array of vectors (the gates of a cell, the rows of a
// tile) became four of 4 bytes.
__device__ __forceinline__ void store_access(uint4 bytes, void* p) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(p)), "r"(bytes.x), "r"(bytes.y), "r"(bytes.z),
                 "r"(bytes.w)
               : "memory");
#else
  *static_cast<uint4*>(p) = bytes;
#endif
}

// kCount neighbouring elements as they lie in memory: one, or kLanes of them at an aligned address.
template <class T, int kCount>
struct Elements {
  static_assert(kCount == 1 || kCount == kLanes<T>, "");
  T at[kCount];

  static __device__ __forceinline__ Elements load(const T* p) {
    Elements e;
    if constexpr (kCount == 1) {
      e.at[0] = *p;
    } else {
      const uint4 bytes = *reinterpret_cast<const uint4*>(p);
      memcpy(e.at, &bytes, sizeof bytes);
    }
    return e;
  }
  __device__ __forceinline__ void store(T* p) const {
    if constexpr (kCount == 1) {
      *p = at[0];
    } else {
      uint4 bytes;
      memcpy(&bytes, at, sizeof bytes);
      store_access(bytes, p);
    }
  }
};

// The same in the type that is computed in.
template <class T, int kCount>
struct Values {
  compute_t<T> at[kCount];

  static __device__ __forceinline__ Values of(const Elements<T, kCount>& e) {
    Values v;
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) v.at[k] = widened(e.at[k]);
    return v;
  }
  static __device__ __forceinline__ Values load(const T* p) {
    return of(Elements<T, kCount>::load(p));
  }
  __device__ __forceinline__ void store(T* p) const {
    Elements<T, kCount> e;
    FASTACT_UNROLL for (int k = 0; k < kCount; ++k) round_to(at[k], &e.at[k]);
    e.store(p);
  }
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
