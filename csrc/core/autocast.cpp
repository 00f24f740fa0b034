#include "core/autocast.h"

#include <memory>

namespace fastact {
namespace {

// Boxed: one kernel for every operator.
class CastAll : public c10::OperatorKernel {
 public:
  CastAll(AutocastPolicy policy, c10::DeviceType device) : policy_(policy), device_(device) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    const std::size_t count = op.schema().arguments().size();
    const AutocastCall cast(policy_, device_, torch::jit::peek(*stack, 0, count).toTensor());
    for (std::size_t i = 0; i < count; ++i) {
      c10::IValue& argument = torch::jit::peek(*stack, i, count);
      if (argument.isTensor()) {
        argument = cast(argument.toTensor());
      } else if (argument.isTensorList()) {
        std::vector<Tensor> tensors = argument.toTensorVector();
        for (Tensor& t : tensors) {
          t = cast(t);
        }
        argument = std::move(tensors);
      }
    }
    op.callBoxed(stack);
  }

 private:
  AutocastPolicy policy_;
  c10::DeviceType device_;
};

}  // namespace

void implement_autocast(const char* name) {
  for_each_autocast(name, [&](torch::Library& m, AutocastPolicy policy, c10::DeviceType device) {
    m.impl(name,
           torch::CppFunction::makeFromBoxedFunctor(std::make_unique<CastAll>(policy, device)));
  });
}

bool autocast_fuses(std::optional<std::string_view> activation, const OptionalTensor& residual,
                    c10::DeviceType device) {
  switch (activation ? autocast_policy(*activation, device) : AutocastPolicy::kAsGiven) {
    case AutocastPolicy::kAsGiven:
    case AutocastPolicy::kByInput:
      return true;
    case AutocastPolicy::kLowerPrecision:
      return !is_defined(residual);
    case AutocastPolicy::kFloat32:
      return false;
  }
  TORCH_INTERNAL_ASSERT(false);
}

}  // namespace fastact
