// Registers the kernels of an operator under every dispatch key it needs, in one place.
#pragma once

#include <torch/library.h>

#include <deque>

#include "core/operator.h"

namespace fastact {

// The keys of each kind of kernel. CompositeExplicitAutograd serves every backend without kernels
// of fastact's own, but leaves out nested tensors, strided and jagged ones: where autograd runs,
// its kernel composes for them; under torch.inference_mode() there is no autograd, and the second
// key decides.
inline constexpr c10::DispatchKey kAutogradKeys[] = {c10::DispatchKey::Autograd};
inline constexpr c10::DispatchKey kCpuKeys[] = {c10::DispatchKey::CPU};
inline constexpr c10::DispatchKey kFakeKeys[] = {c10::DispatchKey::Meta};
inline constexpr c10::DispatchKey kComposedKeys[] = {
    c10::DispatchKey::CompositeExplicitAutograd,
    c10::DispatchKey::CompositeImplicitAutogradNestedTensor};
inline constexpr c10::DispatchKey kAutocastCpuKeys[] = {c10::DispatchKey::AutocastCPU};
inline constexpr c10::DispatchKey kAutocastCudaKeys[] = {c10::DispatchKey::AutocastCUDA};

// implement(library) for a library of each key.
template <std::size_t N, class F>
void implement_for(const c10::DispatchKey (&keys)[N], const F& implement) {
  // They unregister their kernels when they are destroyed.
  static auto& libraries = *new std::deque<torch::Library>;
  for (const c10::DispatchKey key : keys) {
    libraries.emplace_back(torch::Library::IMPL, "fastact", key, __FILE__, __LINE__);
    implement(libraries.back());
  }
}

// One kernel, with the keys it is for.
template <auto kKernel, const auto& kKeys>
struct KernelFor {
  static void implement(const char* name) {
    implement_for(kKeys, [&](torch::Library& m) { m.impl(name, TORCH_FN(kKernel)); });
  }
};
template <auto kKernel>
struct Autograd : KernelFor<kKernel, kAutogradKeys> {};  // its first argument: the dispatch keys
template <auto kKernel>
struct Cpu : KernelFor<kKernel, kCpuKeys> {};
template <auto kKernel>
struct Fake : KernelFor<kKernel, kFakeKeys> {};
template <auto kKernel>
struct Composed : KernelFor<kKernel, kComposedKeys> {};
template <auto kKernel>
struct AutocastCpu : KernelFor<kKernel, kAutocastCpuKeys> {};
template <auto kKernel>
struct AutocastCuda : KernelFor<kKernel, kAutocastCudaKeys> {};

// Registers an operator where it is constructed. These four kinds of kernels cannot be left out: an
// operator without one of them fails for some users alone (fake tensors, nested tensors).
class Registration {
 public:
  template <class Schema, auto kAutograd, auto kCpu, auto kFake, auto kComposed, class... More>
  Registration(const Operator<Schema>& op, Autograd<kAutograd>, Cpu<kCpu>, Fake<kFake>,
               Composed<kComposed>, More...) {
    Autograd<kAutograd>::implement(op.name());
    Cpu<kCpu>::implement(op.name());
    Fake<kFake>::implement(op.name());
    Composed<kComposed>::implement(op.name());
    (More::implement(op.name()), ...);
  }

  // Of an operator that is not differentiable.
  template <class Schema, auto kCpu, auto kFake, auto kComposed>
  Registration(const Operator<Schema>& op, Cpu<kCpu>, Fake<kFake>, Composed<kComposed>) {
    Cpu<kCpu>::implement(op.name());
    Fake<kFake>::implement(op.name());
    Composed<kComposed>::implement(op.name());
  }
};

}  // namespace fastact
