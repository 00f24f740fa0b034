// One dtype's kernels of convolutions.
#pragma once

#include "cpu/kernels/conv_depthwise.h"
#include "cpu/kernels/conv_winograd.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class T>
constexpr ConvKernels kConvKernels = {
    kWinogradKernels<T, 2>,
    kWinogradKernels<T, 4>,
    {
        kDepthwiseKernels<T, 3, 1>,
        kDepthwiseKernels<T, 3, 2>,
        kDepthwiseKernels<T, 5, 1>,
        kDepthwiseKernels<T, 5, 2>,
        kDepthwiseKernels<T, 0, 0>,
    },
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
