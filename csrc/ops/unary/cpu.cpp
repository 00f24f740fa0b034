// The unary activations on the CPU.
#include <ATen/MemoryOverlap.h>
#include <ATen/TensorIterator.h>

#include "core/layout.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"
#include "ops/unary/unary.h"

namespace fastact {
namespace {

// Waking torch's workers and waiting for them takes 1 us (Zen 5, benchmarks overhead suite), and
// 8,000 cycles of work on each of two cores save twice that; an element of memory traffic in cache
// costs at least 3 cycles per 16. Grain in elements, a multiple of every cache line and vector.
int64_t grain_of(const Activation& activation) {
  const int64_t cycles = std::max(activation.cost, 3);
  return std::max<int64_t>(16 * 8000 / cycles / 1024, 1) * 1024;
}

// ---- strided operands -------------------------------------------------------------------------

constexpr int64_t kBlock = 256;  // elements gathered at a time: 2 KiB a buffer, well inside L1

// Runs kernel(pointers, n) over the operands of `iterator` (the output first), each run of elements
// contiguous in every operand: where one is not, it goes through a buffer, block by block.
template <int Operands, class F>
void for_each_run(const at::TensorIterator& iterator, int64_t grain, const F& kernel) {
  const int64_t size = iterator.element_size(0);
  const auto loop = [&](char** data, const int64_t* strides, int64_t n, int64_t rows) {
    alignas(64) char buffers[Operands][kBlock * 8];
    for (int64_t row = 0; row < rows; ++row) {
      char* pointers[Operands];
      bool contiguous = true;
      for (int k = 0; k < Operands; ++k) {
        pointers[k] = data[k] + row * strides[Operands + k];
        contiguous = contiguous && strides[k] == size;
      }
      if (contiguous) {
        kernel(pointers, n);
        continue;
      }
      for (int64_t i = 0; i < n; i += kBlock) {
        const int64_t count = std::min(kBlock, n - i);
        char* block[Operands];
        for (int k = 0; k < Operands; ++k) {
          if (strides[k] == size) {
            block[k] = pointers[k] + i * size;
          } else {
            block[k] = buffers[k];
            if (k > 0) {
              copy_elements(size, pointers[k] + i * strides[k], strides[k], block[k], size, count);
            }
          }
        }
        kernel(block, count);
        if (block[0] == buffers[0]) {
          copy_elements(size, block[0], size, pointers[0] + i * strides[0], strides[0], count);
        }
      }
    }
  };
  parallel_for(iterator.numel(), grain,
               [&](int64_t begin, int64_t end) { iterator.serial_for_each(loop, {begin, end}); });
}

void forward_into(const Activation& activation, const Tensor& self, Tensor& result,
                  const double* parameters) {
  const UnaryKernel kernel =
      kernels().elementwise[table_dtype(self.scalar_type())].forward[activation.index];
  const int64_t grain = grain_of(activation);
  if (same_dense_layout(self, result)) {
    const char* x = static_cast<const char*>(self.const_data_ptr());
    char* y = static_cast<char*>(result.mutable_data_ptr());
    const int64_t size = self.element_size();
    parallel_for(self.numel(), grain, [&](int64_t begin, int64_t end) {
      kernel(x + begin * size, y + begin * size, end - begin, parameters);
    });
    return;
  }
  const auto iterator = at::TensorIteratorConfig()
                            .set_check_mem_overlap(true)
                            .resize_outputs(false)
                            .add_output(result)
                            .add_const_input(self)
                            .build();
  for_each_run<2>(iterator, grain, [&](char** p, int64_t n) { kernel(p[1], p[0], n, parameters); });
}

}  // namespace

Tensor unary_cpu(const Activation& activation, const Tensor& self, const double* parameters) {
  activation.check(parameters);
  if (C10_UNLIKELY(!covered(self))) {
    return activation.compose(self, parameters);
  }
  Tensor result =
      activation.keeps_strides ? empty_like(self) : empty(self.sizes(), self.scalar_type());
  forward_into(activation, self, result, parameters);
  return result;
}

Tensor& unary_inplace_cpu(const Activation& activation, Tensor& self, const double* parameters) {
  activation.check(parameters);
  at::assert_no_internal_overlap(self);
  if (C10_UNLIKELY(!covered(self))) {
    return self.copy_(activation.compose(self, parameters));
  }
  forward_into(activation, self, self, parameters);
  return self;
}

Tensor unary_backward_cpu(const Activation& activation, const Tensor& grad, const Tensor& saved,
                          const double* parameters) {
  check_unary_backward(activation, grad, saved);
  if (C10_UNLIKELY(!covered(saved, grad))) {
    return activation.compose_backward(grad, saved, parameters);
  }
  const UnaryBackwardKernel kernel =
      kernels().elementwise[table_dtype(saved.scalar_type())].backward[activation.index];
  const int64_t grain = grain_of(activation);
  Tensor result = empty_like(saved);
  if (same_dense_layout(grad, saved) && same_dense_layout(saved, result)) {
    const char* g = static_cast<const char*>(grad.const_data_ptr());
    const char* s = static_cast<const char*>(saved.const_data_ptr());
    char* dx = static_cast<char*>(result.mutable_data_ptr());
    const int64_t size = saved.element_size();
    parallel_for(saved.numel(), grain, [&](int64_t begin, int64_t end) {
      kernel(g + begin * size, s + begin * size, dx + begin * size, end - begin, parameters);
    });
    return result;
  }
  const auto iterator = at::TensorIteratorConfig()
                            .resize_outputs(false)
                            .add_output(result)
                            .add_const_input(grad)
                            .add_const_input(saved)
                            .build();
  for_each_run<3>(iterator, grain,
                  [&](char** p, int64_t n) { kernel(p[1], p[2], p[0], n, parameters); });
  return result;
}

}  // namespace fastact
