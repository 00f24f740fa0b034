// The engines behind conv(): one file each.
#pragma once

#include <algorithm>

#include "cpu/conv/conv.h"

namespace fastact {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Multiply-adds that a thread is woken for: 4 us of one core (see gemm/gemm.cpp).
constexpr int64_t kParallelConv = int64_t{1} << 19;

// layout.cpp: images [channels][pixels] as [pixels][channels].
void to_channels_last(Dtype dtype, const void* from, int64_t images, int64_t channels,
                      int64_t pixels, void* to);

// winograd.cpp: M = 2 or 4.
bool winograd_conv(const ConvProblem& problem, int m);
int64_t winograd_packed_bytes(const ConvProblem& problem, int m);
void winograd_pack(const ConvProblem& problem, int m, void* packed);

// depthwise.cpp
bool depthwise_fits(const ConvProblem& problem);
void depthwise_conv(const ConvProblem& problem);

// pointwise.cpp: kernels of one pixel, as matrix products.
bool pointwise_fits(const ConvProblem& problem);
void pointwise_conv(const ConvProblem& problem);
int64_t pointwise_packed_bytes(const ConvProblem& problem);
void pointwise_pack(const ConvProblem& problem, void* packed);

}  // namespace fastact
