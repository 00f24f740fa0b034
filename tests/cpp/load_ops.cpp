// A C++ program without Python that loads the operator library and calls it through the dispatcher,
// as a server or an AOTInductor package does. It links PyTorch and nothing of fastact.
//
//     load_ops path/to/_ops.so
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <cstdio>

namespace {

template <class Schema>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Schema>();
}

bool check(const char* what, const at::Tensor& actual, const at::Tensor& expected) {
  const bool right = at::allclose(actual, expected, 1e-6, 1e-6);
  std::printf("%s: %s\n", what, right ? "right" : "WRONG");
  return right;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || !dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL)) {
    std::printf("cannot load: %s\n", argc == 2 ? dlerror() : "usage: load_ops LIBRARY");
    return 2;
  }
  const auto relu = find<at::Tensor(const at::Tensor&)>("fastact::relu");
  const auto leaky_relu = find<at::Tensor(const at::Tensor&, double)>("fastact::leaky_relu");
  const auto tanh = find<at::Tensor(const at::Tensor&)>("fastact::tanh");
  const auto instruction_set = find<std::string()>("fastact::instruction_set");
  std::printf("%s\n", instruction_set.call().c_str());

  // Enough elements for several threads.
  const at::Tensor x = at::linspace(-3, 3, 300'001);
  bool right = check("relu", relu.call(x), at::relu(x));
  right &= check("leaky_relu", leaky_relu.call(x, 0.1), at::leaky_relu(x, 0.1));
  right &= check("tanh", tanh.call(x), at::tanh(x));

  at::Tensor leaf = at::linspace(-3, 3, 301).set_requires_grad(true);
  tanh.call(leaf).sum().backward();
  const at::Tensor slope = 1 - at::tanh(leaf.detach()).square();
  right &= check("the gradient of tanh", leaf.grad(), slope);
  return right ? 0 : 1;
}
