// May kernels take these operands? Decided here; where they may not, explain is told why.
#pragma once

#include "core/activation.h"
#include "core/checks.h"
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

// A strided tensor on a device of this type, of a dtype that the kernels compute, with no lazy bit
// to resolve.
template <c10::DeviceType kDevice = at::kCPU>
bool has_kernels(const Tensor& t) {
  const bool on_device = kDevice == at::kCPU ? t.is_cpu() : t.device().type() == kDevice;
  if (!is_kernel_dtype(t.scalar_type()) || t.layout() != at::kStrided || !on_device || t.is_neg() ||
      !enabled()) {
    return false;
  }
  check_allocated(t);
  return true;
}

// Leaves word for explain why PyTorch computes the operator that runs on this thread.
void note_obstacle(std::string words);
// Notes "no kernel for" this. Returns false.
bool not_covered(std::string what);
// The same where kernels do not take one of these operands, or not all of them together.
bool none_covered(at::ArrayRef<const Tensor*> operands);

inline const Tensor* operand(const Tensor& t) { return &t; }
inline const Tensor* operand(const OptionalTensor& t) { return t ? &*t : nullptr; }

// Whether kernels take operands of one dtype, those that are there.
template <c10::DeviceType kDevice = at::kCPU, class... T>
bool covered(const Tensor& first, const T&... others) {
  [[maybe_unused]] const auto fits = [&](const Tensor* t) {  // of one operand there are no others
    return !t || !t->defined() ||
           (has_kernels<kDevice>(*t) && t->scalar_type() == first.scalar_type());
  };
  return (has_kernels<kDevice>(first) && (fits(operand(others)) && ...)) ||
         none_covered({operand(first), operand(others)...});
}

// What was left for explain since the last call, else what kernels have against `operand`; "" where
// there is nothing.
std::string take_obstacle(const OptionalTensor& operand);

}  // namespace fastact
