#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>

namespace fastact {

// One family's tables of one instruction set, as cpu/isa/FAMILY*.cpp defines them.
#define FASTACT_DECLARE(Table, family)  \
  extern const Table family##_float;    \
  extern const Table family##_double;   \
  extern const Table family##_bfloat16; \
  extern const Table family##_half;
#define FASTACT_TABLES(isa, family) \
  {isa::family##_float, isa::family##_double, isa::family##_bfloat16, isa::family##_half}

#define FASTACT_DECLARE_FAMILIES(isa)              \
  namespace isa {                                  \
  FASTACT_DECLARE(ElementwiseKernels, elementwise) \
  FASTACT_DECLARE(SoftmaxKernels, softmax)         \
  FASTACT_DECLARE(GemmKernels, gemm)               \
  FASTACT_DECLARE(ConvKernels, conv)               \
  extern const RecurrentKernels recurrent_float;   \
  extern const RecurrentKernels recurrent_double;  \
  }
#define FASTACT_FAMILIES(isa)                                                                \
  FASTACT_TABLES(isa, elementwise), FASTACT_TABLES(isa, softmax), FASTACT_TABLES(isa, gemm), \
      FASTACT_TABLES(isa, conv), {                                                           \
    isa::recurrent_float, isa::recurrent_double                                              \
  }

FASTACT_DECLARE_FAMILIES(baseline)
#if defined(__x86_64__)
FASTACT_DECLARE_FAMILIES(avx2)
FASTACT_DECLARE_FAMILIES(avx512)
namespace avx512_bf16 {
extern const ElementwiseKernels elementwise_bfloat16;
extern const SoftmaxKernels softmax_bfloat16;
extern const GemmKernels gemm_bfloat16;
}  // namespace avx512_bf16
#endif

namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

struct InstructionSet {
  const char* name;
  bool (*supported)();
  Kernels (*kernels)();
};

// Narrowest first.
const InstructionSet kInstructionSets[] = {
    {"baseline", [] { return true; },
     [] { return Kernels{"baseline", FASTACT_FAMILIES(baseline)}; }},
#if defined(__x86_64__)
    {"avx2", has_avx2, [] { return Kernels{"avx2", FASTACT_FAMILIES(avx2)}; }},
    {"avx512", has_avx512, [] { return Kernels{"avx512", FASTACT_FAMILIES(avx512)}; }},
    {"avx512_bf16", has_avx512_bf16,
     [] {
       Kernels kernels{"avx512_bf16", FASTACT_FAMILIES(avx512)};
       kernels.elementwise[kBFloat16Dtype] = avx512_bf16::elementwise_bfloat16;
       kernels.softmax[kBFloat16Dtype] = avx512_bf16::softmax_bfloat16;
       kernels.gemm[kBFloat16Dtype] = avx512_bf16::gemm_bfloat16;
       return kernels;
     }},
#endif
};

Kernels choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const InstructionSet* widest = nullptr;
  std::string supported;
  for (const InstructionSet& set : kInstructionSets) {
    if (set.supported()) {
      widest = &set;
      supported += std::string(supported.empty() ? "" : ", ") + set.name;
    }
  }
  const char* wanted = std::getenv("FASTACT_ISA");
  if (!wanted || !*wanted) {
    return widest->kernels();
  }
  for (const InstructionSet& set : kInstructionSets) {
    if (!std::strcmp(set.name, wanted)) {
      TORCH_CHECK(set.supported(), "fastact: FASTACT_ISA: expected one that this processor has (",
                  supported, "), got ", wanted);
      return set.kernels();
    }
  }
  TORCH_CHECK_VALUE(false, "fastact: FASTACT_ISA: expected one of ", supported, ", got ", wanted);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

std::vector<std::string> built_instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : kInstructionSets) {
    names.emplace_back(set.name);
  }
  return names;
}

bool enabled() {
  static const bool value = [] {
    const char* disable = std::getenv("FASTACT_DISABLE");
    return !(disable && !std::strcmp(disable, "1"));
  }();
  return value;
}

}  // namespace fastact
