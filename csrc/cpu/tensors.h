// What the CPU kernels of every operator ask of a tensor.
#pragma once

#include "core/activation.h"
#include "cpu/dispatch.h"

namespace fastact {

// Raises where the memory of a strided CPU tensor was taken away: sharded training resizes storages
// to nothing between uses, and an untyped pointer does not tell.
inline void check_allocated(const Tensor& t) {
  const c10::TensorImpl* impl = t.unsafeGetTensorImpl();
  const c10::Storage& storage = impl->unsafe_storage();
  const bool fits =
      !impl->is_contiguous() ||
      static_cast<std::size_t>(impl->storage_offset() + impl->numel()) * impl->itemsize() <=
          storage.nbytes();
  TORCH_CHECK(impl->numel() == 0 || (storage.data() && fits),
              "fastact: expected a tensor whose storage holds its elements, got one of shape ",
              t.sizes(), " on a storage of ", storage.nbytes(), " bytes");
}

// A strided CPU tensor of a dtype that the kernels compute, with no lazy bit to resolve.
inline bool has_kernels(const Tensor& t) {
  if (!is_kernel_dtype(t.scalar_type()) || t.layout() != at::kStrided || !t.is_cpu() ||
      t.is_neg() || !enabled()) {
    return false;
  }
  check_allocated(t);
  return true;
}

// n elements of element_size bytes; strides in bytes.
void copy_elements(int64_t element_size, const char* from, int64_t from_stride, char* to,
                   int64_t to_stride, int64_t n);

// The elements of `from` into `to`, of one dtype and shape, on fastact's threads: at::copy_ and
// contiguous() hang in a forked child (see parallel.h).
void copy(const Tensor& from, const Tensor& to);

// `t` itself where it is contiguous, else a contiguous copy.
Tensor contiguous(const Tensor& t);

}  // namespace fastact
