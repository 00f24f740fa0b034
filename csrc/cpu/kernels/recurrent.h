// One compute type's kernels of recurrent layers.
#pragma once

#include "cpu/kernels/recurrent_cells.h"
#include "cpu/kernels/recurrent_product.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

template <class C>
constexpr RecurrentKernels kRecurrentKernels = {
    {kPanelUnits<C>[0], kPanelUnits<C>[1], kPanelUnits<C>[2], kPanelUnits<C>[3], kPanelUnits<C>[4]},
    kStripRegisters<C> * Vec<C>::size,
    &pack_gates<C>,
    &pack_strips<C>,
    &multiply<C>,
    {&finish_cell<C, kTanhCell>, &finish_cell<C, kReluCell>, &finish_cell<C, kGruCell>,
     &finish_cell<C, kLstmCell>, &finish_cell<C, kProjectionCell>},
    {&finish_cell_backward<C, kTanhCell>, &finish_cell_backward<C, kReluCell>,
     &finish_cell_backward<C, kGruCell>, &finish_cell_backward<C, kLstmCell>,
     &finish_cell_backward<C, kProjectionCell>},
};

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
