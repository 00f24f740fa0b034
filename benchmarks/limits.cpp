// What this processor can do at most: its clock, arithmetic per instruction set, bandwidth per buffer
// size, the cost of entering a parallel region.
//
//     limits THREADS BYTES...   prints one JSON object; BYTES are sizes of one buffer
//
// Each instruction set is a function-level target and is run only where the processor has it.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kChains = 12;  // independent accumulators: at least latency times issue width
constexpr long kFmaSteps = 400'000;
constexpr int kUnroll = 8;             // vectors per iteration of the bandwidth loops
constexpr long kBlock = 64 * kUnroll;  // bytes: a multiple of one iteration of every kernel
constexpr double kGroupSeconds = 8e-3;
constexpr int kGroups = 7;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds per call, from the fastest of several groups: a limit is what the machine does
// undisturbed.
template <class Work>
double seconds_per_call(Work work) {
  double begin = now();
  work();
  work();
  const double estimate = std::max((now() - begin) / 2, 1e-7);
  const int calls = std::max(1, static_cast<int>(kGroupSeconds / estimate));
  double best = 1e30;
  for (int group = 0; group < kGroups; ++group) {
    begin = now();
    for (int call = 0; call < calls; ++call) work();
    best = std::min(best, (now() - begin) / calls);
  }
  return best;
}

struct Kernels {
  const char* name;
  bool supported;
  int lanes;
  float (*fma)();
  float (*read)(const char* from, long bytes);
  void (*copy)(const char* from, char* to, long bytes);
  void (*stream)(const char* from, char* to, long bytes);  // non-temporal stores
};

// The four kernels of one width, from its intrinsics' prefix. Intrinsics inline only into
// functions of their own target, hence a macro and not a template.
#define DEFINE_KERNELS(SET, TARGET, VECTOR, PREFIX, FMA)                                    \
  __attribute__((target(TARGET))) float fma_##SET() {                                       \
    VECTOR chain[kChains];                                                                  \
    for (int i = 0; i < kChains; ++i) chain[i] = PREFIX##_set1_ps(1e-3f * i);               \
    const VECTOR factor = PREFIX##_set1_ps(0.999f);                                         \
    for (long step = 0; step < kFmaSteps; ++step)                                           \
      _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) chain[i] =                 \
          FMA(chain[i], factor, factor);                                                    \
    float out[16], sum = 0;                                                                 \
    for (int i = 0; i < kChains; ++i) PREFIX##_storeu_ps(out, chain[i]), sum += out[0];     \
    return sum;                                                                             \
  }                                                                                         \
  __attribute__((target(TARGET))) float read_##SET(const char* from, long bytes) {          \
    VECTOR sum[kUnroll];                                                                    \
    for (int i = 0; i < kUnroll; ++i) sum[i] = PREFIX##_setzero_ps();                       \
    constexpr long width = sizeof(VECTOR);                                                  \
    for (long at = 0; at < bytes; at += kUnroll * width)                                    \
      _Pragma("GCC unroll 8") for (int i = 0; i < kUnroll; ++i) sum[i] = PREFIX##_add_ps(   \
          sum[i], PREFIX##_load_ps(reinterpret_cast<const float*>(from + at + i * width))); \
    float out[16], total = 0;                                                               \
    for (int i = 0; i < kUnroll; ++i) PREFIX##_storeu_ps(out, sum[i]), total += out[0];     \
    return total;                                                                           \
  }                                                                                         \
  DEFINE_COPY(copy_##SET, TARGET, VECTOR, PREFIX##_load_ps, PREFIX##_store_ps)              \
  DEFINE_COPY(stream_##SET, TARGET, VECTOR, PREFIX##_load_ps, PREFIX##_stream_ps)

#define DEFINE_COPY(NAME, TARGET, VECTOR, LOAD, STORE)                                \
  __attribute__((target(TARGET))) void NAME(const char* from, char* to, long bytes) { \
    constexpr long width = sizeof(VECTOR);                                            \
    for (long at = 0; at < bytes; at += kUnroll * width)                              \
      _Pragma("GCC unroll 8") for (int i = 0; i < kUnroll; ++i)                       \
          STORE(reinterpret_cast<float*>(to + at + i * width),                        \
                LOAD(reinterpret_cast<const float*>(from + at + i * width)));         \
    _mm_sfence();                                                                     \
  }

#define MULTIPLY_ADD_SSE2(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)

DEFINE_KERNELS(sse2, "sse2", __m128, _mm, MULTIPLY_ADD_SSE2)
DEFINE_KERNELS(avx2, "avx2,fma", __m256, _mm256, _mm256_fmadd_ps)
DEFINE_KERNELS(avx512, "avx512f", __m512, _mm512, _mm512_fmadd_ps)

#define KERNELS(SET, LANES, SUPPORTED) \
  Kernels { #SET, SUPPORTED, LANES, fma_##SET, read_##SET, copy_##SET, stream_##SET }

// bf16 pairs summed into fp32, the product behind every bf16 matrix multiplication here.
__attribute__((target("avx512f,avx512bf16"))) float dot_bf16() {
  __m512 chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = _mm512_set1_ps(1e-3f * i);
  const __m512 ones = _mm512_set1_ps(1.0f);
  const __m512bh pairs = _mm512_cvtne2ps_pbh(ones, ones);
  for (long step = 0; step < kFmaSteps; ++step)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = _mm512_dpbf16_ps(chain[i], pairs, pairs);
  float out[16], sum = 0;
  for (int i = 0; i < kChains; ++i) _mm512_storeu_ps(out, chain[i]), sum += out[0];
  return sum;
}

volatile float sink;  // keeps results alive

// Cycles per second. A chain of multiplications takes three cycles each on every processor since 2008.
double clock_rate() {
  constexpr long kSteps = 1'000'000;
  return 3.0 * kSteps / seconds_per_call([] {
    std::uint64_t x = 3;
    for (long step = 0; step < kSteps; step += 4)
      asm volatile("imul %0, %0\n imul %0, %0\n imul %0, %0\n imul %0, %0" : "+r"(x));
  });
}

double flops_per_second(float (*kernel)(), int flops_per_vector, int threads) {
  const double seconds = seconds_per_call([&] {
#pragma omp parallel num_threads(threads)
    sink = kernel();
  });
  return static_cast<double>(flops_per_vector) * kChains * kFmaSteps * threads / seconds;
}

// Runs body(first byte, bytes) on each thread's share, whole blocks each.
template <class Body>
void share(long bytes, int threads, Body body) {
  if (threads == 1) return body(0, bytes);  // even a region of one thread costs 0.3 us
  const long blocks = bytes / kBlock;
#pragma omp parallel num_threads(threads)
  {
    const long thread = omp_get_thread_num(), team = omp_get_num_threads();
    const long first = blocks * thread / team, last = blocks * (thread + 1) / team;
    body(first * kBlock, (last - first) * kBlock);
  }
}

char* allocate(long bytes) {
  char* buffer = static_cast<char*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
  std::memset(buffer, 0, bytes);  // touch every page before timing
  return buffer;
}

struct Bandwidth {
  double read, copy;
};

// The best of one thread and all, and of plain and non-temporal stores.
Bandwidth bandwidth(const Kernels& kernels, long bytes, int threads) {
  bytes = std::max(kBlock, bytes / kBlock * kBlock);
  char *from = allocate(bytes), *to = allocate(bytes);
  Bandwidth best = {0, 0};
  for (int team : {1, threads}) {
    const double read = seconds_per_call([&] {
      share(bytes, team, [&](long at, long count) { sink = kernels.read(from + at, count); });
    });
    best.read = std::max(best.read, bytes / read);
    for (auto copy : {kernels.copy, kernels.stream}) {
      const double seconds = seconds_per_call([&] {
        share(bytes, team, [&](long at, long count) { copy(from + at, to + at, count); });
      });
      best.copy = std::max(best.copy, 2.0 * bytes / seconds);
    }
  }
  std::free(from);
  std::free(to);
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f");
  const Kernels sets[] = {
      KERNELS(sse2, 4, true),
      KERNELS(avx2, 8, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
      KERNELS(avx512, 16, avx512),
  };
  const Kernels* widest = sets;
  std::printf("{\"clock\": %.6g, \"flops\": {", clock_rate());
  for (const Kernels& set : sets) {
    if (!set.supported) continue;
    widest = &set;
    const double flops = flops_per_second(set.fma, 2 * set.lanes, threads);
    std::printf("%s\"fp32 %s\": %.6g", &set == sets ? "" : ", ", set.name, flops);
  }
  if (avx512 && __builtin_cpu_supports("avx512bf16"))
    std::printf(", \"bf16 avx512_bf16\": %.6g", flops_per_second(dot_bf16, 64, threads));
  std::printf("}, \"bandwidth\": [");
  for (int i = 2; i < argc; ++i) {
    const long bytes = std::atol(argv[i]);
    const Bandwidth best = bandwidth(*widest, bytes, threads);
    std::printf("%s{\"bytes\": %ld, \"read\": %.6g, \"copy\": %.6g}", i > 2 ? ", " : "", bytes,
                best.read, best.copy);
  }
  const double region = seconds_per_call([&] {
#pragma omp parallel num_threads(threads)
    sink = 0;
  });
  std::printf("], \"parallel_region\": %.6g}\n", region);
}
