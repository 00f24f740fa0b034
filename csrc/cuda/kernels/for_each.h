// The loop of every kernel whose results depend on one position.
#pragma once

#include "cuda/kernels/elements.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

constexpr int kForEachThreads = 256;
// Told nothing (0), ptxas 13.0 holds double kernels to 48 or 64 registers and spills some; told
// this, it takes up to 60 for float ones that need 36.
template <class C>
constexpr int kMinBlocks = sizeof(C) == sizeof(double) ? 2 : 0;
// Operations say kManyRegisters where ptxas spilled float ones, too: a GRU's step on sm_80, sums
// alone on sm_100.
template <class C, class Operation>
constexpr int kMinBlocksOf = kMinBlocks<C>;
template <class C, class Operation>
  requires Operation::kManyRegisters
constexpr int kMinBlocksOf<C, Operation> = 2;

// operation.run<kCount>(i) for kCount neighbouring results, i the first of them: kLanes<T>, one
// access of 16 bytes from each operand, in whole vectors; one in the tail, or everywhere where
// `wide` is false, neighbours in neighbouring threads. One access a thread is enough: 2,048 threads
// of a multiprocessor wait for 32 KiB an operand, where HBM's latency times its bandwidth is about
// half that for each of them.
template <class T, class Operation>
__global__ void __launch_bounds__(kForEachThreads, (kMinBlocksOf<T, Operation>))
    for_each(Operation operation, int64_t n, bool wide) {
  constexpr int kCount = kLanes<T>;
  constexpr int kOfBlock = kForEachThreads * kCount;
  const int64_t block = int64_t{blockIdx.x} * kOfBlock;
  const int thread = static_cast<int>(threadIdx.x);
  // From the block's first element.
  const int end = n - block < kOfBlock ? static_cast<int>(n - block) : kOfBlock;
  const int whole = wide ? end / kCount : 0;
  if (thread < whole) operation.template run<kCount>(block + thread * kCount);
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int i = whole * kCount + thread; i < end; i += kForEachThreads) {
    operation.template run<1>(block + i);
  }
}

template <class T, class Operation>
void launch_for_each(const Operation& operation, int64_t n, bool wide, cudaStream_t stream) {
  constexpr int64_t kOfBlock = kForEachThreads * kLanes<T>;
  if (n == 0) return;
  launch(for_each<T, Operation>, dim3(static_cast<unsigned>((n + kOfBlock - 1) / kOfBlock)),
         dim3(kForEachThreads), stream, operation, n, wide);
}

// Of a position in rows: 32-bit where it can be, since a 64-bit division takes some 70
// instructions.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t{static_cast<uint32_t>(a) / static_cast<uint32_t>(b)}
                              : a / b;
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
