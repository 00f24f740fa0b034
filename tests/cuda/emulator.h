// Stands in for CUDA on the host. A CUDA thread is a fiber, which runs until it waits; a seed
// decides which one goes on. Kernels are compiled with -fsanitize=thread,alignment,bounds and
// linked without it: the compiler only places the calls that emulator.cpp, compiled without,
// answers by looking at every access. So no sanitizer's runtime is needed, and the library loads
// into any Python.
//
// There are no atomics, since the order in which they add is not fixed.
#pragma once

#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define EMULATOR_UNSEEN __attribute__((no_sanitize("thread", "undefined")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

// Calls body(arguments) in each thread of the grid.
void run(dim3 grid, dim3 threads, void (*body)(const void* arguments), const void* arguments);
// Memory of the block, of one declaration: `place` and `line` name it.
void* shared(const void* place, int line, unsigned bytes);
uint64_t shuffle(const char* what, unsigned mask, uint64_t value, int source, int line);
void synchronize_block(int line);
void synchronize_warp(unsigned mask, int line);
int lane();

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 threads, A... arguments) {
  const auto call = [=]() EMULATOR_UNSEEN { kernel(arguments...); };
  using Call = decltype(call);
  run(
      grid, threads,
      [](const void* bound) EMULATOR_UNSEEN { (*static_cast<const Call*>(bound))(); }, &call);
}

template <class T>
T shuffled(const char* what, unsigned mask, T value, int source, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = shuffle(what, mask, bits, source, line);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulator

inline void __syncthreads(int line = __builtin_LINE()) { emulator::synchronize_block(line); }
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  emulator::synchronize_warp(mask, line);
}
// Of the lanes of a group of `width`, as CUDA: a source outside is the lane itself.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, int line = __builtin_LINE()) {
  const int lane = emulator::lane(), from = lane ^ flip;
  return emulator::shuffled("__shfl_xor_sync", mask, value,
                            from / width == lane / width ? from : lane, line);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, int line = __builtin_LINE()) {
  return emulator::shuffled("__shfl_sync", mask, value,
                            emulator::lane() / width * width + from % width, line);
}
