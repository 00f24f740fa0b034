#include "cpu/coverage.h"

#include <c10/core/ScalarType.h>

namespace fastact {
namespace {

std::string& obstacle() {
  static thread_local std::string words;
  return words;
}

// As Python names it.
const char* name_of(at::Layout layout) {
  switch (layout) {
    case at::kSparse:
      return "sparse_coo";
    case at::kSparseCsr:
      return "sparse_csr";
    case at::kMkldnn:
      return "_mkldnn";
    default:
      return "compressed sparse";
  }
}

bool is_on_device_with_kernels(const Tensor& t) {
#ifdef FASTACT_CUDA
  if (t.is_cuda()) {
    return true;
  }
#endif
  return t.is_cpu();
}

// Why kernels do not take a tensor, or "".
std::string obstacle_of(const Tensor& t) {
  if (!enabled()) {
    return "FASTACT_DISABLE=1";
  }
  std::ostringstream what;
  if (!is_on_device_with_kernels(t)) {
    what << "tensors on " << c10::DeviceTypeName(t.device().type(), /*lower_case=*/true);
  } else if (t.is_nested()) {
    what << "nested tensors";
  } else if (t.layout() != at::kStrided) {
    what << name_of(t.layout()) << " tensors";
  } else if (!is_kernel_dtype(t.scalar_type())) {
    what << c10::getDtypeNames(t.scalar_type()).first;
  } else if (t.is_neg()) {
    what << "tensors with a lazy negation";
  } else {
    return "";
  }
  return "no kernel for " + what.str();
}

}  // namespace

void note_obstacle(std::string words) { obstacle() = std::move(words); }

bool not_covered(std::string what) {
  note_obstacle("no kernel for " + std::move(what));
  return false;
}

bool none_covered(at::ArrayRef<const Tensor*> operands) {
  for (const Tensor* t : operands) {
    if (t && t->defined()) {
      obstacle() = obstacle_of(*t);
      if (!obstacle().empty()) {
        return false;
      }
    }
  }
  return not_covered("tensors of different dtypes");
}

std::string take_obstacle(const OptionalTensor& operand) {
  std::string words = std::exchange(obstacle(), "");
  return words.empty() && is_defined(operand) ? obstacle_of(*operand) : words;
}

}  // namespace fastact
