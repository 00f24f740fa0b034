// The emulator's own part, compiled without -fsanitize: scheduling, and the judgement of accesses.
//
// Each granule of memory remembers its last write and up to three reads, with the clocks that tell
// whether a barrier lies between two accesses: a race is reported whatever the schedule.
// __syncthreads orders a block, __syncwarp the lanes of its mask; shuffles order nothing, as CUDA
// defines it, and nothing orders the blocks of a launch.
#include "emulator.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Where this library's code and constants lie.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start, _end;

namespace emulator {
namespace {

enum class Kind : uint8_t { kNone, kRead, kWrite };
enum class State : uint8_t { kReady, kAtBarrier, kAtWarp, kDone };
enum Mode : int { kInput, kOutput, kBoth };

struct Access {
  const void* pc = nullptr;
  unsigned block = 0, epoch = 0, clock = 0;
  uint16_t thread = 0;
  Kind kind = Kind::kNone;
};
struct Granule {
  Access write;
  Access reads[3];
};
struct Region {
  std::string name;
  uintptr_t begin, end;
  unsigned granule;
  bool writable;
  std::vector<uint8_t> defined;
  std::vector<Granule> history = {};
  uint64_t read = 0, written = 0;  // bytes
};
struct Shared {
  std::unique_ptr<unsigned char[]> memory;
  Region region;
};
struct Thread {
  ucontext_t start;
  jmp_buf stopped_at;
  State state;
  bool started;
  uint3 index;
  // What it waits for.
  const char* what;
  int line;
  unsigned mask;
  int source;
  uint64_t value;
  // How far it knows the lanes of its warp to have come.
  unsigned clock;
  std::array<unsigned, 32> seen;
};

constexpr size_t kStack = 64 << 10;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxShared = 48 << 10;  // what a kernel may declare

std::deque<Region> buffers;
std::map<std::pair<const void*, int>, Shared> shared_memory;
unsigned shared_bytes;
std::map<std::string, std::pair<int, std::string>> reports;  // kind: how often, the first
std::string report_text;
std::vector<Thread> threads;
char* stacks;
Thread* current;
jmp_buf scheduler;
void (*body)(const void*);
const void* body_arguments;
unsigned size, waiting, block, epoch;
bool checking, stopped;
uint64_t launches;
std::mt19937 random_order;

// While the emulator itself runs for a thread.
struct Inside {
  Inside() { checking = false; }
  ~Inside() { checking = true; }
};

unsigned me() { return static_cast<unsigned>(current - threads.data()); }

std::string place(const void* pc) {
  char text[40];
  snprintf(text, sizeof text, "<%lx>",
           static_cast<unsigned long>(static_cast<const char*>(pc) - &__ehdr_start));
  return text;
}

void report(const std::string& kind, const std::string& text, const void* pc = nullptr,
            const void* other = nullptr) {
  auto& [count, first] = reports[kind];
  if (count++) return;
  first = text + ", thread " + std::to_string(current ? me() : 0) + " of block " +
          std::to_string(block);
  if (pc) first += " at " + place(pc);
  if (other) first += ", the other at " + place(other);
}

// The launch ends, as it would with an illegal access on a device.
[[noreturn]] void stop(const std::string& kind, const std::string& text, const void* pc = nullptr) {
  report(kind, text, pc);
  stopped = true;
  _longjmp(scheduler, 1);
}

bool same_warp(const Access& a) { return a.block == block && a.thread / 32 == me() / 32; }

// Whether `a` happened before what the running thread does now.
bool ordered(const Access& a) {
  if (a.kind == Kind::kNone) return true;
  if (a.block != block) return false;
  return a.thread == me() || a.epoch < epoch ||
         (same_warp(a) && current->seen[a.thread % 32] >= a.clock);
}

Region* region_of(uintptr_t address) {
  for (Region& r : buffers) {
    if (address >= r.begin && address < r.end) return &r;
  }
  for (auto& [key, s] : shared_memory) {
    if (address >= s.region.begin && address < s.region.end) return &s.region;
  }
  return nullptr;
}

void check_granule(Region& r, size_t g, const Access& now) {
  Granule& h = r.history[g];
  const auto race_with = [&](const Access& a) {
    report("race",
           r.name + " + " + std::to_string(g * r.granule) + " with thread " +
               std::to_string(a.thread) + " of block " + std::to_string(a.block),
           now.pc, a.pc);
  };
  if (!ordered(h.write)) race_with(h.write);
  if (now.kind == Kind::kWrite) {
    for (const Access& a : h.reads) {
      if (!ordered(a)) race_with(a);
    }
    h = {now, {}};
    r.defined[g] = 1;
    return;
  }
  if (!r.defined[g]) {
    report("read before written", r.name + " + " + std::to_string(g * r.granule), now.pc);
  }
  // Room for this read: one that it follows need not be kept, and two of a warp are enough.
  for (Access& a : h.reads) {
    if (ordered(a)) {
      a = now;
      return;
    }
  }
  if (!same_warp(h.reads[0]) && !same_warp(h.reads[1])) h.reads[2] = now;
}

void check(const void* pointer, size_t bytes, Kind kind, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  Region* r = region_of(address);
  const auto* const at = static_cast<const char*>(pointer);
  if (!r && kind == Kind::kRead && at >= &__ehdr_start && at < &_end) return;  // threadIdx
  if (!r || address + bytes > r->end) {
    // Told by the distance from the buffer that begins next below.
    for (Region& one : buffers) {
      if (one.begin <= address && (!r || one.begin > r->begin)) r = &one;
    }
    const std::string where =
        r ? r->name + " + " + std::to_string(address - r->begin) : std::string("no buffer");
    stop("out of bounds", std::to_string(bytes) + " bytes at " + where, pc);
  }
  (kind == Kind::kRead ? r->read : r->written) += bytes;
  if (kind == Kind::kWrite && !r->writable) report("write to an input", r->name, pc);
  const Access now{pc, block, epoch, current->clock, static_cast<uint16_t>(me()), kind};
  const size_t last = (address + bytes - 1 - r->begin) / r->granule;
  for (size_t g = (address - r->begin) / r->granule; g <= last; ++g) check_granule(*r, g, now);
}

void on_access(const void* pointer, size_t bytes, Kind kind, const void* pc) {
  if (!checking) return;
  const char* stack = stacks + me() * kStack;
  if (pointer >= stack && pointer < stack + kStack) return;
  Inside inside;
  check(pointer, bytes, kind, pc);
}

// ---- waiting -----------------------------------------------------------------------------------

void wait() {
  if (!_setjmp(current->stopped_at)) _longjmp(scheduler, 1);
}

unsigned lanes_of_warp() { return std::min(32u, size - me() / 32 * 32); }

// Until all lanes of `mask` have come; the last one calls finish(first thread of the warp).
template <class Finish>
uint64_t wait_for_warp(const char* what, unsigned mask, uint64_t value, int source, int line,
                       const Finish& finish) {
  Thread* const warp = &threads[me() / 32 * 32];
  const unsigned lanes = lanes_of_warp();
  const unsigned existing = lanes == 32 ? ~0u : (1u << lanes) - 1;
  const std::string where = std::string(what) + " in line " + std::to_string(line);
  if (!(mask >> me() % 32 & 1)) stop("wrong mask", where + ": the lane is not in its mask");
  if (mask & ~existing) stop("wrong mask", where + ": a lane of the mask does not exist");
  Thread& t = *current;
  t.what = what;
  t.mask = mask;
  t.value = value;
  t.source = source;
  t.line = line;
  t.state = State::kAtWarp;
  bool complete = true;
  for (unsigned l = 0; l < lanes; ++l) {
    const Thread& other = warp[l];
    complete &= !(mask >> l & 1) ||
                (other.state == State::kAtWarp && other.mask == mask && other.line == line);
  }
  if (complete) {
    finish(warp);
    for (unsigned l = 0; l < lanes; ++l) {
      if (mask >> l & 1) warp[l].state = State::kReady;
    }
  }
  wait();
  return current->value;
}

// No thread can go on.
void report_stuck() {
  std::map<std::string, int> waits;
  bool at_warp = false;
  for (const Thread& t : threads) {
    std::string what = "returned";
    if (t.state != State::kDone) what = std::string(t.what) + " in line " + std::to_string(t.line);
    at_warp |= t.state == State::kAtWarp;
    ++waits[what];
  }
  std::string text;
  for (const auto& [what, count] : waits) {
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " threads: " + what;
  }
  stopped = true;
  report(at_warp ? "divergent warp" : "divergent barrier", text);
}

// ---- scheduling --------------------------------------------------------------------------------

void first_call() {
  checking = true;
  body(body_arguments);
  checking = false;
  current->state = State::kDone;
  _longjmp(scheduler, 1);
}

void resume(Thread& t) {
  current = &t;
  threadIdx = t.index;
  if (t.started) _longjmp(t.stopped_at, 1);
  t.started = true;
  getcontext(&t.start);
  t.start.uc_stack.ss_sp = stacks + me() * kStack;
  t.start.uc_stack.ss_size = kStack;
  makecontext(&t.start, first_call, 0);
  setcontext(&t.start);
}

// One at random, or the next that can go on; null if none can.
Thread* choose() {
  const unsigned first = random_order() % size;
  for (unsigned i = 0; i < size; ++i) {
    Thread& t = threads[(first + i) % size];
    if (t.state == State::kReady) return &t;
  }
  return nullptr;
}

void run_block() {
  shared_memory.clear();
  shared_bytes = 0;
  waiting = epoch = 0;
  for (unsigned t = 0; t < size; ++t) {
    Thread& thread = threads[t];
    thread.state = State::kReady;
    thread.started = false;
    thread.line = 0;
    thread.clock = 1;
    thread.seen = {};
    thread.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
  }
  volatile unsigned alive = size;
  while (alive && !stopped) {
    Thread* const next = choose();
    if (!next) return report_stuck();
    if (!_setjmp(scheduler)) resume(*next);
    checking = false;
    if (current->state == State::kDone) alive = alive - 1;
    current = nullptr;
  }
}

}  // namespace

void run(dim3 grid, dim3 of_block, void (*call)(const void*), const void* arguments) {
  if (stopped) return;  // a device would not go on either
  ++launches;
  gridDim = grid;
  blockDim = of_block;
  size = of_block.x * of_block.y * of_block.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (!size || size > kMaxThreads || !blocks || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535) {
    report("bad launch", std::to_string(blocks) + " blocks of " + std::to_string(size));
    stopped = true;
    return;
  }
  if (!stacks) {
    stacks = static_cast<char*>(mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  threads.resize(size);
  body = call;
  body_arguments = arguments;
  for (Region& r : buffers) r.history.assign(r.defined.size(), {});
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < blocks; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random_order);
  for (size_t i = 0; i < order.size() && !stopped; ++i) {
    block = order[i];
    blockIdx = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    run_block();
  }
}

void* shared(const void* place, int line, unsigned bytes) {
  Inside inside;
  Shared& s = shared_memory[{place, line}];
  if (!s.memory) {
    shared_bytes += bytes;
    if (shared_bytes > kMaxShared) stop("bad launch", "too much shared memory");
    // 16 bytes of room, since arrays are aligned so; a NaN in every type.
    s.memory.reset(new unsigned char[bytes + 16]);
    memset(s.memory.get(), 0xff, bytes + 16);
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(s.memory.get()) + 15) / 16 * 16;
    s.region = {"shared memory of line " + std::to_string(line),
                begin,
                begin + bytes,
                4,
                true,
                std::vector<uint8_t>((bytes + 3) / 4)};
    s.region.history.resize(s.region.defined.size());
  }
  return reinterpret_cast<void*>(s.region.begin);
}

int lane() { return static_cast<int>(me() % 32); }

void synchronize_block(int line) {
  Inside inside;
  current->what = "__syncthreads";
  current->line = line;
  current->state = State::kAtBarrier;
  if (++waiting == size) {
    for (Thread& t : threads) {
      if (t.line != line) {
        stop("divergent barrier",
             "lines " + std::to_string(line) + " and " + std::to_string(t.line));
      }
    }
    for (Thread& t : threads) t.state = State::kReady;
    waiting = 0;
    ++epoch;
  }
  wait();
}

void synchronize_warp(unsigned mask, int line) {
  Inside inside;
  wait_for_warp("__syncwarp", mask, 0, 0, line, [mask](Thread* warp) {
    std::array<unsigned, 32> known{};
    for (unsigned l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      for (unsigned k = 0; k < 32; ++k) known[k] = std::max(known[k], warp[l].seen[k]);
      known[l] = std::max(known[l], warp[l].clock++);
    }
    for (unsigned l = 0; l < 32; ++l) {
      if (mask >> l & 1) warp[l].seen = known;
    }
  });
}

uint64_t shuffle(const char* what, unsigned mask, uint64_t value, int source, int line) {
  Inside inside;
  return wait_for_warp(what, mask, value, source, line, [=](Thread* warp) {
    std::array<uint64_t, 32> values{};
    for (unsigned l = 0; l < 32; ++l) {
      if (mask >> l & 1) values[l] = warp[l].value;
    }
    for (unsigned l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      const int from = warp[l].source;
      const bool active = mask >> from & 1;
      if (!active) {
        report("inactive lane", std::string(what) + " in line " + std::to_string(line) +
                                    " reads lane " + std::to_string(from));
      }
      warp[l].value = active ? values[from] : ~uint64_t{0};
    }
  });
}

}  // namespace emulator

// ---- what the tests call -----------------------------------------------------------------------

#define EMULATOR_API extern "C" __attribute__((visibility("default")))

// Forgets buffers and reports. The launches that follow are one session.
EMULATOR_API void emulator_begin(unsigned seed) {
  emulator::buffers.clear();
  emulator::reports.clear();
  emulator::stopped = false;
  emulator::random_order.seed(seed);
}

// Memory that kernels may touch: 0 an input, 1 an output, which nobody has written yet, 2 both.
EMULATOR_API void emulator_buffer(const char* name, const void* data, uint64_t bytes,
                                  unsigned granule, int mode) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  emulator::buffers.push_back({name, begin, begin + bytes, granule, mode != emulator::kInput,
                               std::vector<uint8_t>(bytes / granule, mode != emulator::kOutput)});
}

// Of buffer `index`: bytes read and written in the session, and granules that nobody has written.
EMULATOR_API void emulator_traffic(unsigned index, uint64_t* traffic) {
  const emulator::Region& r = emulator::buffers[index];
  traffic[0] = r.read;
  traffic[1] = r.written;
  traffic[2] = static_cast<uint64_t>(std::count(r.defined.begin(), r.defined.end(), 0));
}

// How many kernels have been started.
EMULATOR_API uint64_t emulator_launches() { return emulator::launches; }

// A line for each kind of fault; <...> stands for a place in this library.
EMULATOR_API const char* emulator_reports() {
  emulator::report_text.clear();
  for (const auto& [kind, one] : emulator::reports) {
    emulator::report_text += kind + ": " + one.second + " (" + std::to_string(one.first) + "x)\n";
  }
  return emulator::report_text.c_str();
}

// ---- what the compiler calls -------------------------------------------------------------------

extern "C" {

#define EMULATOR_CALLBACKS(bytes)                                                       \
  void __tsan_read##bytes(void* p) {                                                    \
    emulator::on_access(p, bytes, emulator::Kind::kRead, __builtin_return_address(0));  \
  }                                                                                     \
  void __tsan_write##bytes(void* p) {                                                   \
    emulator::on_access(p, bytes, emulator::Kind::kWrite, __builtin_return_address(0)); \
  }
EMULATOR_CALLBACKS(1)
EMULATOR_CALLBACKS(2)
EMULATOR_CALLBACKS(4)
EMULATOR_CALLBACKS(8)
EMULATOR_CALLBACKS(16)
void __tsan_read_range(void* p, size_t bytes) {
  emulator::on_access(p, bytes, emulator::Kind::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  emulator::on_access(p, bytes, emulator::Kind::kWrite, __builtin_return_address(0));
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

struct Source {
  const char* file;
  unsigned line, column;
};
struct TypeMismatch {
  Source source;
  const void* type;
  unsigned char log_alignment, kind;
};

void __ubsan_handle_type_mismatch_v1(TypeMismatch* m, uintptr_t) {
  if (!emulator::checking) return;
  emulator::checking = false;
  emulator::stop("misaligned", std::to_string(1 << m->log_alignment) + " bytes needed in line " +
                                   std::to_string(m->source.line));
}
void __ubsan_handle_out_of_bounds(Source* s, uintptr_t index) {
  if (!emulator::checking) return;
  emulator::checking = false;
  emulator::stop("out of bounds",
                 "index " + std::to_string(index) + " in line " + std::to_string(s->line));
}

}  // extern "C"
