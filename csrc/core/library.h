// Where kernels are registered: a library for each dispatch key.
#pragma once

#include <torch/library.h>

#include <deque>

namespace fastact {

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

}  // namespace fastact
