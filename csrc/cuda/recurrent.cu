// The launches of recurrent cells, for one dtype.
#include "cuda/kernels/recurrent.h"
#include "cuda/launches.h"

namespace fastact {
namespace {

using T = FASTACT_TYPE;

const T* in(const void* p) { return static_cast<const T*>(p); }
T* out(void* p) { return static_cast<T*>(p); }

void start_rnn(const void* from_x, const void* from_h, void* h, int64_t rows, int64_t units,
               bool is_tanh, DeviceStream stream) {
  rnn_step(in(from_x), in(from_h), out(h), rows, units, is_tanh, stream);
}

void start_rnn_backward(const void* dh, const void* h, void* gradients, int64_t rows, int64_t units,
                        bool is_tanh, DeviceStream stream) {
  rnn_step_backward(in(dh), in(h), out(gradients), rows, units, is_tanh, stream);
}

void start_lstm(const void* from_x, const void* from_h, const void* c_before, void* h, void* c,
                void* activated, int64_t rows, int64_t units, DeviceStream stream) {
  lstm_step<T>({in(from_x), in(from_h), in(c_before), out(h), out(c), out(activated), units}, rows,
               stream);
}

void start_lstm_backward(const void* dh, const void* dc, const void* activated,
                         const void* c_before, const void* c, void* gradients, void* dc_before,
                         int64_t rows, int64_t units, DeviceStream stream) {
  lstm_step_backward<T>(
      {in(dh), in(dc), in(activated), in(c_before), in(c), out(gradients), out(dc_before), units},
      rows, stream);
}

void start_gru(const void* from_x, const void* from_h, const void* h_before, void* h,
               void* activated, int64_t rows, int64_t units, DeviceStream stream) {
  gru_step<T>({in(from_x), in(from_h), in(h_before), out(h), out(activated), units}, rows, stream);
}

void start_gru_backward(const void* dh, const void* activated, const void* h_before,
                        void* gradients, void* dh_before, int64_t rows, int64_t units,
                        DeviceStream stream) {
  gru_step_backward<T>({in(dh), in(activated), in(h_before), out(gradients), out(dh_before), units},
                       rows, stream);
}

}  // namespace

const RecurrentLaunches FASTACT_TABLE(recurrent) = {
    start_rnn, start_rnn_backward, start_lstm, start_lstm_backward, start_gru, start_gru_backward};

}  // namespace fastact
