// Registers the kernels of an operator under every dispatch key it needs, in one place.
#pragma once

#include "core/autocast.h"
#include "core/library.h"
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

// The function that computes under autocast where its tensors are not all cast alike:
// kFunction(policy, device, arguments...).
template <auto kFunction>
struct AutocastBy {
  template <class Result, class... A>
  static void implement(const Operator<Result(A...)>& op) {
    for_each_autocast(op.name(),
                      [&](torch::Library& m, AutocastPolicy policy, c10::DeviceType device) {
                        m.impl(op.name(), [policy, device](A... arguments) -> Result {
                          return kFunction(policy, device, std::forward<A>(arguments)...);
                        });
                      });
  }
};

// Registers an operator where it is constructed. These four kinds of kernels cannot be left out: an
// operator without one of them fails for some users alone (fake tensors, nested tensors). What
// autocast does with it says its row in core/autocast.h.
class Registration {
 public:
  template <class Schema, auto kAutograd, auto kCpu, auto kFake, auto kComposed>
  Registration(const Operator<Schema>& op, Autograd<kAutograd> autograd, Cpu<kCpu> cpu,
               Fake<kFake> fake, Composed<kComposed> composed)
      : Registration(op, cpu, fake, composed) {
    autograd.implement(op.name());
    implement_autocast(op.name());
  }

  template <class Schema, auto kAutograd, auto kCpu, auto kFake, auto kComposed, auto kFunction>
  Registration(const Operator<Schema>& op, Autograd<kAutograd> autograd, Cpu<kCpu> cpu,
               Fake<kFake> fake, Composed<kComposed> composed, AutocastBy<kFunction> autocast)
      : Registration(op, cpu, fake, composed) {
    autograd.implement(op.name());
    autocast.implement(op);
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
