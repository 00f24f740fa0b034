// The launches of PReLU, for one dtype.
#include "cuda/kernels/prelu.h"
#include "cuda/launches.h"

namespace fastact {
namespace {

using T = FASTACT_TYPE;

SlopeOf slopes_of(const SlopeRows& r) { return {r.length, r.slopes, r.along}; }

void start(const void* x, const void* slope, void* y, const SlopeRows& r, DeviceStream stream) {
  prelu(static_cast<const T*>(x), static_cast<const T*>(slope), static_cast<T*>(y),
        r.rows * r.length, slopes_of(r), stream);
}

int64_t backward_parts(const SlopeRows& r) {
  return r.along ? column_parts(r.rows) * r.length : r.rows * pieces_of_row<T>(r.length);
}

void start_backward(const void* grad, const void* x, const void* slope, void* dx, void* dslope,
                    void* parts, const SlopeRows& r, DeviceStream stream) {
  const auto* const g = static_cast<const T*>(grad);
  const auto* const v = static_cast<const T*>(x);
  const auto* const s = static_cast<const T*>(slope);
  auto* const of_parts = static_cast<compute_t<T>*>(parts);
  if (r.along) {
    prelu_columns_backward(g, v, s, static_cast<T*>(dx), static_cast<T*>(dslope), of_parts, r.rows,
                           r.length, stream);
  } else {
    prelu_rows_backward(g, v, s, static_cast<T*>(dx), static_cast<T*>(dslope), of_parts, r.rows,
                        slopes_of(r), stream);
  }
}

}  // namespace

const PreluLaunches FASTACT_TABLE(prelu) = {start, backward_parts, start_backward};

}  // namespace fastact
