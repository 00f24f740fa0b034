// One dtype's kernels of a matrix product.
#pragma once

#include "cpu/kernels/gemm_dot.h"
#include "cpu/kernels/gemm_packing.h"
#include "cpu/kernels/gemm_tile.h"
#include "cpu/kernels/rows.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class T>
constexpr GemmKernels kGemmKernels = {
    Gemm<T>::kPanel,
    Gemm<T>::V::size,
    Gemm<T>::kUnitBytes,
    // Rows of T are rows of units where nothing is widened.
    std::is_same<T, compute_t<T>>::value || Gemm<T>::kPairs,
    Gemm<T>::kDepth,
    Gemm<T>::kBlock,
    &gemm_tile<T>,
    &pack_panels<T>,
    &pack_rows<T>,
    &gemm_rows<T>,
    &store_rows<T>,
    &store_transposed<T>,
    &add_to_tile<T>,
    &widen_row<T>,
    &add_rows<T>,
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
