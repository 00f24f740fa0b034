// What every header of math/ and cpu/simd/ needs: the name of the instruction set this object is
// compiled for, and the mark of a function.
//
// All of them put their content into  fastact { inline namespace FASTACT_ISA { namespace {  : an
// object compiled for a wider instruction set must define no weak symbol, or the linker could keep
// its copy for every processor. Hence internal linkage, and no standard library function that might
// not be inlined.
#pragma once

#ifndef FASTACT_ISA
#define FASTACT_ISA baseline
#endif

#if defined(__CUDACC__)
#define FASTACT_FN __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define FASTACT_FN __forceinline
#else
// A vector that crosses a call goes through memory, so that nothing may stay out of line.
#define FASTACT_FN inline __attribute__((always_inline))
#endif

// After a lambda's parameters.
#if defined(__GNUC__)
#define FASTACT_LAMBDA __attribute__((always_inline))
#else
#define FASTACT_LAMBDA
#endif

// Loops over a few registers, which must become registers before anything else is optimised.
#if defined(__CUDA_ARCH__)
#define FASTACT_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define FASTACT_UNROLL
#elif defined(__clang__)
#define FASTACT_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define FASTACT_UNROLL _Pragma("GCC unroll 32")
#else
#define FASTACT_UNROLL
#endif

#if defined(__GNUC__)
#define FASTACT_UNLIKELY(condition) __builtin_expect(condition, 0)
#else
#define FASTACT_UNLIKELY(condition) (condition)
#endif
