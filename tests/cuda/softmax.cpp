// Softmax by rows and by columns, and the gradients, on the emulator.
#include "cuda/kernels/softmax.h"

#include "cuda/kernels/softmax_columns.h"
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

// A mask's rows: `sizes` and `strides` of two dimensions, the inner one first.
template <class T>
SoftmaxArguments<T> arguments(int64_t length, double scale, bool log, int kind, const void* mask,
                              const double* dims) {
  SoftmaxArguments<T> a{length, static_cast<compute_t<T>>(scale), log, {}};
  a.mask.kind = static_cast<MaskKind>(kind);
  a.mask.data = mask;
  a.mask.dims = 2;
  for (int d = 0; d < 2; ++d) {
    a.mask.sizes[d] = static_cast<int64_t>(dims[d]);
    a.mask.strides[d] = static_cast<int64_t>(dims[2 + d]);
  }
  return a;
}

}  // namespace

TEST_API bool test_softmax(int dtype, const void* x, void* y, int64_t rows, int64_t length,
                           double scale, bool log, int kind, const void* mask, const double* dims) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    softmax(in<T>(x), out<T>(y), rows, arguments<T>(length, scale, log, kind, mask, dims), nullptr);
    return true;
  });
}

TEST_API bool test_softmax_backward(int dtype, const void* grad, const void* y, void* dx,
                                    int64_t rows, int64_t length, double scale, bool log, int kind,
                                    const void* mask, const double* dims) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    softmax_backward(in<T>(grad), in<T>(y), out<T>(dx), rows,
                     arguments<T>(length, scale, log, kind, mask, dims), nullptr);
    return true;
  });
}

TEST_API bool test_along(int dtype, const void* x, void* y, int64_t outer, int64_t length,
                         int64_t inner, double scale, bool log) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    softmax_along(in<T>(x), out<T>(y), outer, length, inner, static_cast<compute_t<T>>(scale), log,
                  nullptr);
    return true;
  });
}

TEST_API bool test_along_backward(int dtype, const void* grad, const void* y, void* dx,
                                  int64_t outer, int64_t length, int64_t inner, double scale,
                                  bool log) {
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    softmax_along_backward(in<T>(grad), in<T>(y), out<T>(dx), outer, length, inner,
                           static_cast<compute_t<T>>(scale), log, nullptr);
    return true;
  });
}
