// The cells of recurrent layers on the emulator.
#include "cuda/kernels/recurrent.h"

#include "library.h"

using namespace fastact;

namespace {

template <class T>
const T* in(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* out(void* p) {
  return static_cast<T*>(p);
}

}  // namespace

TEST_API bool test_rnn(int dtype, const void* from_x, const void* from_h, void* h, int64_t rows,
                       int64_t units, bool is_tanh) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    rnn_step(in<T>(from_x), in<T>(from_h), out<T>(h), rows, units, is_tanh, nullptr);
    return true;
  });
}

TEST_API bool test_rnn_backward(int dtype, const void* dh, const void* h, void* gradients,
                                int64_t rows, int64_t units, bool is_tanh) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    rnn_step_backward(in<T>(dh), in<T>(h), out<T>(gradients), rows, units, is_tanh, nullptr);
    return true;
  });
}

TEST_API bool test_lstm(int dtype, const void* from_x, const void* from_h, const void* c_before,
                        void* h, void* c, void* activated, int64_t rows, int64_t units) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    lstm_step<T>({in<T>(from_x), in<T>(from_h), in<T>(c_before), out<T>(h), out<T>(c),
                  out<T>(activated), units},
                 rows, nullptr);
    return true;
  });
}

TEST_API bool test_lstm_backward(int dtype, const void* dh, const void* dc, const void* activated,
                                 const void* c_before, const void* c, void* gradients,
                                 void* dc_before, int64_t rows, int64_t units) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    lstm_step_backward<T>({in<T>(dh), in<T>(dc), in<T>(activated), in<T>(c_before), in<T>(c),
                           out<T>(gradients), out<T>(dc_before), units},
                          rows, nullptr);
    return true;
  });
}

TEST_API bool test_gru(int dtype, const void* from_x, const void* from_h, const void* h_before,
                       void* h, void* activated, int64_t rows, int64_t units) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    gru_step<T>(
        {in<T>(from_x), in<T>(from_h), in<T>(h_before), out<T>(h), out<T>(activated), units}, rows,
        nullptr);
    return true;
  });
}

TEST_API bool test_gru_backward(int dtype, const void* dh, const void* activated,
                                const void* h_before, void* gradients, void* dh_before,
                                int64_t rows, int64_t units) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    gru_step_backward<T>(
        {in<T>(dh), in<T>(activated), in<T>(h_before), out<T>(gradients), out<T>(dh_before), units},
        rows, nullptr);
    return true;
  });
}
