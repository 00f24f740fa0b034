// Registers the composition of operators under every key that has no kernels of fastact's own.
#pragma once

#include <torch/library.h>

#include <memory>
#include <vector>

namespace fastact {

// CompositeExplicitAutograd leaves out nested tensors, strided and jagged ones. Where autograd
// runs, its kernel composes for them; under torch.inference_mode() there is no autograd, and the
// second key decides.
constexpr c10::DispatchKey kCompositionKeys[] = {
    c10::DispatchKey::CompositeExplicitAutograd,
    c10::DispatchKey::CompositeImplicitAutogradNestedTensor};

// `implement` is called with a library for each of the keys.
class CompositionLibraries {
 public:
  CompositionLibraries(void (*implement)(torch::Library&), const char* file, uint32_t line) {
    for (const c10::DispatchKey key : kCompositionKeys) {
      libraries_.push_back(
          std::make_unique<torch::Library>(torch::Library::IMPL, "fastact", key, file, line));
      implement(*libraries_.back());
    }
  }

 private:
  std::vector<std::unique_ptr<torch::Library>> libraries_;
};

}  // namespace fastact

// TORCH_LIBRARY_IMPL for all keys of kCompositionKeys; once in a file.
#define FASTACT_IMPL_COMPOSITIONS(m)                                          \
  static void fastact_implement_compositions(torch::Library&);                \
  static const ::fastact::CompositionLibraries fastact_composition_libraries( \
      fastact_implement_compositions, __FILE__, __LINE__);                    \
  static void fastact_implement_compositions(torch::Library& m)
