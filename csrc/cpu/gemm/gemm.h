// Matrix products on strided memory: chooses an algorithm by shape, packs, splits over threads,
// finishes each tile while it is in cache. Knows no tensors, so that convolutions and recurrent
// layers can use it on parts of theirs.
#pragma once

#include <functional>

#include "cpu/stages.h"

namespace fastact {

// Element (i, j) lies at data + i * row_stride + j * column_stride, in elements.
struct GemmOperand {
  const void* data;
  int64_t row_stride;
  int64_t column_stride;
};

// What becomes of a finished tile of a b.
struct GemmEpilogue {
  const void* bias = nullptr;        // of the compute type (math/compute_type.h), or null
  Along channels = Along::kColumns;  // how the bias lies along c
  Stages stages;
  const SoftmaxArguments* softmax =
      nullptr;  // at last, of whole rows of c, which must be contiguous
};

// c[m][n] = epilogue(a[m][k] b[k][n]), rows of c `c_stride` elements apart.
struct GemmProblem {
  Dtype dtype;
  int64_t m;
  int64_t n;
  int64_t k;
  GemmOperand a;
  GemmOperand b;
  const void* packed_b;  // by gemm_pack(), or null
  void* c;
  int64_t c_stride;
  GemmEpilogue epilogue;
  // Of c[0][0] from `c`, in elements, where this is one of several products that the stages'
  // operands are laid out as.
  int64_t c_offset = 0;
};

// How a product is computed.
enum class GemmAlgorithm {
  kSkinny,      // b's columns lie along k: each is read once, as a dot product with every row of a
  kTransposed,  // a is packed, b is read as it lies, tiles are stored transposed
  kInPlace,     // b's rows are read as they lie
  kPackB,       // b is packed for this call
  kPackedB,     // b was packed before
};
GemmAlgorithm gemm_algorithm(const GemmProblem& problem);
void gemm(const GemmProblem& problem);

// b in panels, for GemmProblem::packed_b.
int64_t gemm_packed_bytes(Dtype dtype, int64_t k, int64_t n);
void gemm_pack(Dtype dtype, int64_t k, int64_t n, const GemmOperand& b, void* packed);

// sums[j] = x[0][j] + x[1][j] + ... over m contiguous rows; sums are of the compute type. form(row,
// rows, more) is called, on any thread, before these rows are read: it may write them, and add to
// the `more_sums` numbers at `more`, which are summed into those behind the n of sums.
void gemm_column_sums(
    Dtype dtype, const void* x, int64_t m, int64_t n, void* sums,
    const std::function<void(int64_t row, int64_t rows, void* more)>& form = nullptr,
    int64_t more_sums = 0);

}  // namespace fastact
