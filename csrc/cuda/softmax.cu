// The launches of softmax, for one dtype.
#include <algorithm>

#include "cuda/kernels/softmax.h"
#include "cuda/kernels/softmax_columns.h"
#include "cuda/launches.h"

namespace fastact {
namespace {

using T = FASTACT_TYPE;

SoftmaxArguments<T> arguments_of(const SoftmaxRows& rows) {
  SoftmaxArguments<T> a{rows.length, static_cast<compute_t<T>>(rows.scale), rows.log, {}};
  a.mask.kind = rows.mask_kind;
  a.mask.data = rows.mask;
  a.mask.dims = rows.mask_dims;
  std::copy_n(rows.mask_sizes, rows.mask_dims, a.mask.sizes);
  std::copy_n(rows.mask_strides, rows.mask_dims, a.mask.strides);
  return a;
}

void start_rows(const void* x, void* y, const SoftmaxRows& a, DeviceStream stream) {
  softmax(static_cast<const T*>(x), static_cast<T*>(y), a.rows, arguments_of(a), stream);
}

void start_rows_backward(const void* grad, const void* y, void* dx, const SoftmaxRows& a,
                         DeviceStream stream) {
  softmax_backward(static_cast<const T*>(grad), static_cast<const T*>(y), static_cast<T*>(dx),
                   a.rows, arguments_of(a), stream);
}

void start_columns(const void* x, void* y, const SoftmaxColumns& a, DeviceStream stream) {
  softmax_along(static_cast<const T*>(x), static_cast<T*>(y), a.outer, a.length, a.inner,
                static_cast<compute_t<T>>(a.scale), a.log, stream);
}

void start_columns_backward(const void* grad, const void* y, void* dx, const SoftmaxColumns& a,
                            DeviceStream stream) {
  softmax_along_backward(static_cast<const T*>(grad), static_cast<const T*>(y), static_cast<T*>(dx),
                         a.outer, a.length, a.inner, static_cast<compute_t<T>>(a.scale), a.log,
                         stream);
}

}  // namespace

const SoftmaxLaunches FASTACT_TABLE(softmax) = {start_rows, start_rows_backward, start_columns,
                                                start_columns_backward};

}  // namespace fastact
