// PReLU, bias and residual with an activation, and their gradients, on the emulator.
#include "cuda/kernels/epilogue.h"
#include "cuda/kernels/prelu.h"
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

// f(an activation): none, relu, gelu.
template <class F>
bool with_activation(int index, const F& f) {
  switch (index) {
    case 0:
      return f(Identity());
    case 1:
      return f(Relu());
    default:
      return f(Gelu());
  }
}

}  // namespace

TEST_API int64_t test_column_parts(int64_t rows) { return column_parts(rows); }

TEST_API int64_t test_pieces(int bytes, int64_t length) {
  return bytes == 4   ? pieces_of_row<float>(length)
         : bytes == 8 ? pieces_of_row<double>(length)
                      : pieces_of_row<Half>(length);
}

TEST_API bool test_prelu(int dtype, const void* x, const void* slope, void* y, int64_t n,
                         int64_t length, int64_t slopes, bool along) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    prelu(in<T>(x), in<T>(slope), out<T>(y), n, {length, slopes, along}, nullptr);
    return true;
  });
}

TEST_API bool test_prelu_columns_backward(int dtype, const void* grad, const void* x,
                                          const void* slope, void* dx, void* dslope, void* parts,
                                          int64_t rows, int64_t columns) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    prelu_columns_backward(in<T>(grad), in<T>(x), in<T>(slope), out<T>(dx), out<T>(dslope),
                           out<compute_t<T>>(parts), rows, columns, nullptr);
    return true;
  });
}

TEST_API bool test_prelu_rows_backward(int dtype, const void* grad, const void* x,
                                       const void* slope, void* dx, void* dslope, void* parts,
                                       int64_t rows, int64_t length, int64_t slopes) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    prelu_rows_backward(in<T>(grad), in<T>(x), in<T>(slope), out<T>(dx), out<T>(dslope),
                        out<compute_t<T>>(parts), rows, {length, slopes, false}, nullptr);
    return true;
  });
}

TEST_API bool test_epilogue(int activation, int dtype, const void* x, const void* bias,
                            const void* residual, void* kept, void* y, int64_t rows,
                            int64_t columns) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    return with_activation(activation, [&](auto a) {
      epilogue<decltype(a)>(in<T>(x), in<T>(bias), in<T>(residual), out<T>(kept), out<T>(y), rows,
                            columns, nullptr, nullptr);
      return true;
    });
  });
}

TEST_API bool test_epilogue_backward(int activation, int dtype, const void* grad, const void* saved,
                                     void* dz, void* dbias, void* parts, int64_t rows,
                                     int64_t columns) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    return with_activation(activation, [&](auto a) {
      epilogue_backward<decltype(a)>(in<T>(grad), in<T>(saved), out<T>(dz), out<T>(dbias),
                                     out<compute_t<T>>(parts), rows, columns, nullptr, nullptr);
      return true;
    });
  });
}

TEST_API bool test_bias_backward(int dtype, const void* grad, void* dbias, void* parts,
                                 int64_t rows, int64_t columns) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    bias_backward(in<T>(grad), out<T>(dbias), out<compute_t<T>>(parts), rows, columns, nullptr);
    return true;
  });
}
