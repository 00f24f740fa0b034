#include "cpu/memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdlib>
#include <list>
#include <mutex>

#include "cpu/dispatch.h"

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastact {
namespace {

constexpr std::size_t kMinBytes = std::size_t{1} << 20;  // smaller ones malloc itself recycles
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kHugeFrom = std::size_t{4} << 20;  // from here on blocks are made of them

struct Block {
  void* memory;
  std::size_t capacity;
};

// The capacity for a request: at most one eighth more, so that outputs of similar sizes share
// blocks.
std::size_t capacity_of(std::size_t bytes) {
  std::size_t step = kMinBytes / 8;
  while (step * 16 <= bytes) {
    step *= 2;
  }
  return (bytes + step - 1) / step * step;
}

int64_t default_limit() {
  if (const char* text = std::getenv("FASTACT_CACHE_LIMIT")) {
    char* end = nullptr;
    const long long bytes = std::strtoll(text, &end, 10);
    TORCH_CHECK_VALUE(end != text && *end == '\0' && bytes >= 0,
                      "fastact: FASTACT_CACHE_LIMIT: expected a number of bytes, got '", text, "'");
    return bytes;
  }
  int64_t limit = int64_t{1} << 30;
#if defined(__linux__)
  limit = std::min<int64_t>(limit, int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE) / 10);
#endif
  return limit;
}

class BlockCache final : public c10::Allocator {
 public:
  // Never destroyed: tensors outlive static objects.
  static BlockCache& get() {
    static BlockCache* const cache = new BlockCache;
    return *cache;
  }

  c10::DataPtr allocate(std::size_t bytes) override {
    Block* block = nullptr;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      block = take(capacity_of(bytes));
      ++(block ? hits_ : misses_);
    }
    if (!block) {
      block = make(capacity_of(bytes));
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      in_use_ += block->capacity;
    }
    c10::profiledCPUMemoryReporter().New(block->memory, bytes);
    return {block->memory, block, &BlockCache::release, c10::Device(c10::DeviceType::CPU)};
  }

  // Null: the context is not the data pointer, so raw_allocate() must not be used.
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }

  void copy_data(void* to, const void* from, std::size_t count) const override {
    default_copy_data(to, from, count);
  }

  bool enabled() const { return enabled_; }

  void enable(bool enabled) {
    enabled_ = enabled;
    if (!enabled) {
      empty_cache();
    }
  }

  void set_limit(int64_t bytes) {
    TORCH_CHECK_VALUE(bytes >= 0, "fastact.memory.set_limit(): bytes: expected at least 0, got ",
                      bytes);
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    shrink(limit_);
  }

  void empty_cache() {
    std::lock_guard<std::mutex> lock(mutex_);
    shrink(0);
  }

  MemoryStats stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {static_cast<int64_t>(cached_),
            static_cast<int64_t>(idle_.size()),
            static_cast<int64_t>(in_use_),
            hits_,
            misses_,
            limit_};
  }

 private:
  BlockCache() : limit_(default_limit()) {
#if defined(__linux__)
    // A child must not inherit a lock that another thread of its parent held.
    pthread_atfork([] { get().mutex_.lock(); }, [] { get().mutex_.unlock(); },
                   [] { get().mutex_.unlock(); });
#endif
  }

  static void release(void* context) {
    Block* block = static_cast<Block*>(context);
    c10::profiledCPUMemoryReporter().Delete(block->memory);
    BlockCache& cache = get();
    std::lock_guard<std::mutex> lock(cache.mutex_);
    cache.in_use_ -= block->capacity;
    if (!cache.enabled_ || static_cast<int64_t>(block->capacity) > cache.limit_) {
      destroy(block);
      return;
    }
    cache.shrink(cache.limit_ - static_cast<int64_t>(block->capacity));
    cache.cached_ += block->capacity;
    cache.idle_.push_back(block);
  }

  // The most recently released block of this capacity, whose pages are the likeliest to be in
  // cache.
  Block* take(std::size_t capacity) {
    for (auto it = idle_.rbegin(); it != idle_.rend(); ++it) {
      if ((*it)->capacity == capacity) {
        Block* block = *it;
        idle_.erase(std::next(it).base());
        cached_ -= capacity;
        return block;
      }
    }
    return nullptr;
  }

  // Frees the blocks that waited longest until at most `limit` bytes are cached.
  void shrink(int64_t limit) {
    while (static_cast<int64_t>(cached_) > limit) {
      Block* oldest = idle_.front();
      idle_.pop_front();
      cached_ -= oldest->capacity;
      destroy(oldest);
    }
  }

  Block* make(std::size_t capacity) {
    const std::size_t alignment = capacity >= kHugeFrom ? kHugePage : 4096;
    void* memory =
        std::aligned_alloc(alignment, (capacity + alignment - 1) / alignment * alignment);
    if (!memory) {
      empty_cache();
      memory = std::aligned_alloc(alignment, (capacity + alignment - 1) / alignment * alignment);
    }
    TORCH_CHECK(memory, "fastact: not enough memory: expected to allocate ", capacity,
                " bytes for an output, got none");
#if defined(__linux__)
    if (alignment == kHugePage) {
      madvise(memory, capacity / kHugePage * kHugePage, MADV_HUGEPAGE);
    }
#endif
    return new Block{memory, capacity};
  }

  static void destroy(Block* block) {
    std::free(block->memory);
    delete block;
  }

  std::mutex mutex_;
  std::list<Block*>
      idle_;  // least recently released first; a handful, as each has a mebibyte or more
  std::size_t cached_ = 0;
  std::size_t in_use_ = 0;
  int64_t hits_ = 0;
  int64_t misses_ = 0;
  int64_t limit_;
  std::atomic<bool> enabled_{::fastact::enabled()};
};

constexpr c10::DispatchKeySet kCpu(c10::DispatchKey::CPU);

bool from_cache(std::size_t bytes) { return bytes >= kMinBytes && BlockCache::get().enabled(); }

}  // namespace

Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  if (from_cache(at::detail::computeStorageNbytesContiguous(sizes, c10::elementSize(dtype)))) {
    return at::detail::empty_generic(sizes, &BlockCache::get(), kCpu, dtype, std::nullopt);
  }
  return at::detail::empty_cpu(sizes, dtype);
}

Tensor empty_like(const Tensor& self) {
  if (self.is_contiguous()) {
    return empty(self.sizes(), self.scalar_type());
  }
  if (!self.is_non_overlapping_and_dense()) {
    return at::empty_like(self);
  }
  if (from_cache(self.nbytes())) {
    return at::detail::empty_strided_generic(self.sizes(), self.strides(), &BlockCache::get(), kCpu,
                                             self.scalar_type());
  }
  return at::detail::empty_strided_cpu(self.sizes(), self.strides(), self.scalar_type());
}

MemoryStats memory_stats() { return BlockCache::get().stats(); }
void memory_empty_cache() { BlockCache::get().empty_cache(); }
void memory_set_limit(int64_t bytes) { BlockCache::get().set_limit(bytes); }
void memory_enable(bool enabled) { BlockCache::get().enable(enabled); }

}  // namespace fastact
