// Softmax over neighbouring rows on one thread, for the operators' kernels and for fused ones.
#pragma once

#include "cpu/dispatch.h"

namespace fastact {

// Below about this many elements a second thread gains nothing: some 8 cycles per 16 elements.
constexpr int64_t kSoftmaxGrain = 16384;

constexpr int64_t kSoftmaxStackBytes = 8 << 10;  // of a workspace

// On this thread; y may be x.
void softmax_rows(const SoftmaxKernels& kernels, const void* x, void* y, int64_t rows,
                  const SoftmaxArguments& arguments);

}  // namespace fastact
