// What every family's cuda.cpp needs: its dispatch key, and the device and stream of its launches.
// With FASTACT_EMULATED (tools/cuda_emulator.py) operators run on CPU tensors, and the emulator's
// threads in place of a device.
#pragma once

#include <ATen/ops/empty_like.h>

#include "core/layout.h"
#include "core/registration.h"
#include "cpu/coverage.h"
#include "cuda/launches.h"

#ifndef FASTACT_EMULATED
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fastact {

#ifdef FASTACT_EMULATED
inline constexpr c10::DeviceType kDevice = at::kCPU;
inline constexpr c10::DispatchKey kCudaKeys[] = {c10::DispatchKey::CPU};
#else
inline constexpr c10::DeviceType kDevice = at::kCUDA;
inline constexpr c10::DispatchKey kCudaKeys[] = {c10::DispatchKey::CUDA};
#endif

// Registers a CUDA kernel beside those of the operator's Registration: in a file of its own, which
// builds without CUDA leave out.
template <auto kKernel>
struct Cuda : KernelFor<kKernel, kCudaKeys> {};
struct CudaRegistration {
  template <class Schema, auto kKernel>
  CudaRegistration(const Operator<Schema>& op, Cuda<kKernel> kernel) {
    kernel.implement(op.name());
  }
};

// The elements of `t` as they lie in `dense`: t itself, or a copy.
inline Tensor with_layout_of(const Tensor& dense, const Tensor& t) {
  return same_dense_layout(dense, t) ? t : at::empty_like(dense).copy_(t);
}

// f(stream) with the device of `t` as the current one; f starts kernels and does not wait.
template <class F>
void launch_on_device_of(const OperatorName& op, const Tensor& t, const F& f) {
#ifdef FASTACT_EMULATED
  static_cast<void>(op);
  static_cast<void>(t);
  f(DeviceStream());
#else
  const c10::cuda::CUDAGuard guard(t.device());
  f(c10::cuda::getCurrentCUDAStream(t.device().index()).stream());
  const cudaError_t error = cudaGetLastError();
  TORCH_CHECK(error == cudaSuccess, op, "expected ", t.device(), " to run its kernel, got ",
              cudaGetErrorString(error));
#endif
}

}  // namespace fastact
