// Where the outputs of CPU operators come from: a bounded cache of large blocks.
//
// The kernel zeroes every page of a fresh allocation at its first touch; for an output of 64 MB
// that takes four to five times as long as relu's arithmetic and traffic (Zen 5 virtual machine). A
// block that an earlier output left behind has its pages already.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fastact {

using at::Tensor;

// An uninitialised contiguous CPU tensor.
Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype);

// The same with the strides of `self` if that is dense, else with those that at::empty_like gives.
// Goes round the dispatcher: at::empty_like costs 0.3 us more (Zen 5).
Tensor empty_like(const Tensor& self);

struct MemoryStats {
  int64_t cached_bytes;  // in blocks that wait for a new owner
  int64_t cached_blocks;
  int64_t in_use_bytes;  // in blocks that tensors hold
  int64_t hits;          // outputs that found a block
  int64_t misses;        // outputs of cacheable size that did not
  int64_t limit_bytes;   // cached_bytes never exceeds it
};

MemoryStats memory_stats();
void memory_empty_cache();
void memory_set_limit(int64_t bytes);
void memory_enable(bool enabled);

}  // namespace fastact
