// Compiled by tools/cuda_gate.py, not run: every kernel of its family.
#include "cuda/kernels/recurrent.h"

namespace fastact {
inline namespace FASTACT_ISA {

void instantiate(FASTACT_TYPE* p) {
  for (const bool is_tanh : {false, true}) {
    rnn_step(p, p, p, 1, 1, is_tanh, nullptr);
    rnn_step_backward(p, p, p, 1, 1, is_tanh, nullptr);
  }
  lstm_step<FASTACT_TYPE>({p, p, p, p, p, p, 1}, 1, nullptr);
  lstm_step_backward<FASTACT_TYPE>({p, p, p, p, p, p, p, 1}, 1, nullptr);
  gru_step<FASTACT_TYPE>({p, p, p, p, p, 1}, 1, nullptr);
  gru_step_backward<FASTACT_TYPE>({p, p, p, p, p, 1}, 1, nullptr);
}

}  // namespace FASTACT_ISA
}  // namespace fastact
