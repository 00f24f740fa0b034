// What follows a product while its tile is in cache: a short list of stages, so that matrix
// products, convolutions and recurrent layers finish their tiles by the same code and none of them
// lists activations. Knows no tensors.
#pragma once

#include "cpu/dispatch.h"

namespace fastact {

// Bytes of the largest tile.
constexpr int64_t kMostTileBytes = 48 << 10;

// How numbers that belong to channels (a bias, PReLU's slopes) lie along the result c: one for each
// row, or one for each column.
enum class Along { kRows, kColumns };

// A tile in the compute type of its dtype (math/compute_type.h), and its place in c. Strides and
// offsets are in elements.
struct FinishedTile {
  char* values;
  int64_t stride;  // between its rows; less than a register more than `columns`
  int64_t rows;
  int64_t columns;
  int64_t offset;    // of its first element in c, and in whatever is laid out as c
  int64_t c_stride;  // between rows of c
  int64_t channel;   // of its first element
  bool transposed;   // its rows are columns of c
};

struct Stage {
  void (*run)(const FinishedTile& tile, const void* arguments);
  const void* arguments;
};

// In the order in which they run.
class Stages {
 public:
  // `stage` has run(tile) const and lives as long as this. kReadsC: it reads memory that is laid
  // out as c, along rows of c.
  template <class S>
  void add(const S& stage) {
    TORCH_INTERNAL_ASSERT(count_ < kMost);
    stages_[count_++] = {[](const FinishedTile& tile, const void* arguments) {
                           static_cast<const S*>(arguments)->run(tile);
                         },
                         &stage};
    reads_c_ = reads_c_ || S::kReadsC;
  }

  bool empty() const { return count_ == 0; }

  // Runs them, then stores the tile as part of c, if it does not lie there already.
  void finish(Dtype dtype, const FinishedTile& tile, void* c) const;

 private:
  void finish_transposed(Dtype dtype, const FinishedTile& tile, void* c) const;

  static constexpr int kMost = 4;
  Stage stages_[kMost];
  int count_ = 0;
  bool reads_c_ = false;
};

// tile += residual, which is laid out as c.
struct AddResidual {
  static constexpr bool kReadsC = true;
  Dtype dtype;
  const void* residual;
  void run(const FinishedTile& tile) const;
};

// Stores the tile into memory that is laid out as c.
struct KeepPreActivation {
  static constexpr bool kReadsC = false;
  Dtype dtype;
  void* to;
  void run(const FinishedTile& tile) const;
};

struct Activate {
  static constexpr bool kReadsC = false;
  UnaryKernel kernel;
  const double* parameters;
  void run(const FinishedTile& tile) const;
};

// PReLU.
struct MultiplyBySlope {
  static constexpr bool kReadsC = false;
  Dtype dtype;
  const void* slope;  // of the compute type
  bool per_channel;   // else one slope for all
  Along channels;
  void run(const FinishedTile& tile) const;
};

}  // namespace fastact
