// The launches of what follows a product, for one dtype.
#include "cuda/kernels/epilogue.h"
#include "cuda/launches.h"

namespace fastact {
namespace {

using T = FASTACT_TYPE;

template <class A>
void start(const void* x, const void* bias, const void* residual, void* y, int64_t rows,
           int64_t columns, const double* parameters, DeviceStream stream) {
  epilogue<A>(static_cast<const T*>(x), static_cast<const T*>(bias),
              static_cast<const T*>(residual), static_cast<T*>(nullptr), static_cast<T*>(y), rows,
              columns, parameters, stream);
}

template <class A>
void start_backward(const void* grad, const void* saved, void* dz, void* dbias, void* parts,
                    int64_t rows, int64_t columns, const double* parameters, DeviceStream stream) {
  epilogue_backward<A>(static_cast<const T*>(grad), static_cast<const T*>(saved),
                       static_cast<T*>(dz), static_cast<T*>(dbias),
                       static_cast<compute_t<T>*>(parts), rows, columns, parameters, stream);
}

void start_bias_backward(const void* grad, const void*, void*, void* dbias, void* parts,
                         int64_t rows, int64_t columns, const double*, DeviceStream stream) {
  bias_backward(static_cast<const T*>(grad), static_cast<T*>(dbias),
                static_cast<compute_t<T>*>(parts), rows, columns, stream);
}

int64_t backward_parts(int64_t rows, int64_t columns) { return column_parts(rows) * columns; }

template <class List>
struct After;
template <class... A>
struct After<ActivationList<A...>> {
  static constexpr EpilogueLaunches::Forward forward[] = {start<A>...};
  static constexpr EpilogueLaunches::Backward backward[] = {start_backward<A>...};
};
using AfterAll = After<Activations>;

}  // namespace

const EpilogueLaunches FASTACT_TABLE(epilogue) = {
    AfterAll::forward, AfterAll::backward, start<Identity>, start_bias_backward, backward_parts};

}  // namespace fastact
