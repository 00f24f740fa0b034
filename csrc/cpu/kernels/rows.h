// Rows of a tile and of a matrix: conversions between the compute type and the dtype, sums of rows
// and of columns.
#pragma once

#include "cpu/kernels/loops.h"
#include "math/compute_type.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

// Rows of compute_t<T> into rows of T.
template <class T>
void store_rows(const void* tile_, int64_t tile_stride, int64_t rows, int64_t columns, void* c_,
                int64_t c_stride) {
  using V = Vec<compute_t<T>>;
  for (int64_t i = 0; i < rows; ++i) {
    const compute_t<T>* from = static_cast<const compute_t<T>*>(tile_) + i * tile_stride;
    T* to = static_cast<T*>(c_) + i * c_stride;
    for_each_vector<V>(columns, [&](int64_t j, auto count) FASTACT_LAMBDA {
      store_lanes(load_lanes<V>(from + j, count), to + j, count);
    });
  }
}

// The same with row i of the tile becoming column i of c. As many rows at a time as fill a cache
// line of c: its rows lie far apart, often in the few lines of one cache set.
template <class T>
void store_transposed(const void* tile_, int64_t tile_stride, int64_t rows, int64_t columns,
                      void* c_, int64_t c_stride) {
  using C = compute_t<T>;
  using V = Vec<C>;
  constexpr int kBlocks = sizeof(C) / sizeof(T);
  const C* tile = static_cast<const C*>(tile_);
  T* c = static_cast<T*>(c_);
  for (int64_t i = 0; i < rows; i += kBlocks * V::size) {
    for (int64_t j = 0; j < columns; j += V::size) {
      const int width = columns - j >= V::size ? V::size : static_cast<int>(columns - j);
      V block[kBlocks][V::size];
      int height[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        const int64_t first = i + b * V::size;
        const int64_t left = rows - first;
        height[b] = left >= V::size ? V::size : left > 0 ? static_cast<int>(left) : 0;
        for (int r = 0; r < V::size; ++r) {
          const C* from = tile + (first + r) * tile_stride + j;
          block[b][r] = r >= height[b]     ? V(C(0))
                        : width == V::size ? V::load(from)
                                           : V::load(from, width);
        }
        transpose(block[b]);
      }
      for (int r = 0; r < width; ++r) {
        T* to = c + (j + r) * c_stride + i;
        for (int b = 0; b < kBlocks; ++b, to += V::size) {
          height[b] == V::size ? block[b][r].store(to) : block[b][r].store(to, height[b]);
        }
      }
    }
  }
}

template <class T>
void add_to_tile(const void* x_, int64_t stride, int64_t rows, int64_t columns, void* tile_,
                 int64_t tile_stride) {
  using V = Vec<compute_t<T>>;
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = static_cast<const T*>(x_) + i * stride;
    compute_t<T>* tile = static_cast<compute_t<T>*>(tile_) + i * tile_stride;
    for_each_vector<V>(columns, [&](int64_t j, auto count) FASTACT_LAMBDA {
      const V sum = load_lanes<V>(tile + j, count) + load_lanes<V>(x + j, count);
      store_lanes(sum, tile + j, count);
    });
  }
}

template <class T>
void widen_row(const void* x_, void* y_, int64_t n) {
  using V = Vec<compute_t<T>>;
  const T* x = static_cast<const T*>(x_);
  compute_t<T>* y = static_cast<compute_t<T>*>(y_);
  for_each_vector<V>(n, [&](int64_t i, auto count) FASTACT_LAMBDA {
    store_lanes(load_lanes<V>(x + i, count), y + i, count);
  });
}

// Sums of a few rows are added up together with what each addition loses (Kahan): the sum of 32,768
// numbers of 0.1 is off by less than 1e-6 of it, in one chain by 2.5e-4.
constexpr int64_t kRowsOfOneChain = 8;

template <class T>
void add_rows(const void* x_, int64_t stride, int64_t rows, int64_t columns, void* sums_) {
  using V = Vec<compute_t<T>>;
  compute_t<T>* sums = static_cast<compute_t<T>*>(sums_);
  for (int64_t j = 0; j < columns; j += V::size) {
    const T* x = static_cast<const T*>(x_) + j;
    const int rest = columns - j >= V::size ? V::size : static_cast<int>(columns - j);
    const auto load = [&](int64_t i) FASTACT_LAMBDA {
      return rest == V::size ? V::load(x + i * stride) : V::load(x + i * stride, rest);
    };
    V sum = rest == V::size ? V::load(sums + j) : V::load(sums + j, rest);
    V plain = sum;
    V lost(0);
    for (int64_t i = 0; i < rows;) {
      const int64_t end = rows - i < kRowsOfOneChain ? rows : i + kRowsOfOneChain;
      V part = load(i);
      for (++i; i < end; ++i) {
        part = part + load(i);
      }
      const V term = part - lost;
      const V next = sum + term;
      lost = (next - sum) - term;
      sum = next;
      plain = plain + part;
    }
    // What an infinite sum loses is not a number.
    sum = select(sum <= sum, sum, plain);
    rest == V::size ? sum.store(sums + j) : sum.store(sums + j, rest);
  }
}

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
