// What kernels need of CUDA, or of the emulator that stands in for it (tests/cuda).
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>

// Once in a function; every thread of the block gets the same array.
#define FASTACT_SHARED(T, name, count) __shared__ T name[count]
#else
#include "emulator.h"

#define FASTACT_SHARED(T, name, count) \
  T(&name)                             \
  [count] = *static_cast<T(*)[count]>( \
      emulator::shared(__PRETTY_FUNCTION__, __LINE__, sizeof(T) * (count)))
using cudaStream_t = void*;
#endif

#include "math/config.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// kernel<<<grid, block>>>(arguments...), the one place where kernels are started.
// cudaGetLastError() is the caller's to ask.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A... arguments) {
#if defined(__CUDACC__)
  kernel<<<grid, block, 0, stream>>>(arguments...);
#else
  static_cast<void>(stream);
  emulator::launch(kernel, grid, block, arguments...);
#endif
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
