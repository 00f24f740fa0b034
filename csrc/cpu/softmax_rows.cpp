#include "cpu/softmax_rows.h"

#include "cpu/workspace.h"

namespace fastact {

void softmax_rows(const SoftmaxKernels& kernels, const void* x, void* y, int64_t rows,
                  const SoftmaxArguments& arguments) {
  Workspace<kSoftmaxStackBytes> workspace(kernels.rows_scratch(arguments.length));
  kernels.rows(x, nullptr, 0, y, rows, arguments, workspace.get());
}

}  // namespace fastact
