// One instruction set's kernels of every dtype, for the programs that link the objects of cpu/isa/.
// A program's first argument names the set.
#pragma once

#include "check.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/simd/width.h"
#include "math/compute_type.h"

namespace fastact_test {

template <class Table>
struct Tables {
  const char* isa;
  const Table* of_dtype[fastact::kNumDtypes];
};

// FASTACT_TEST_KERNELS(Table, family): all_tables, of the family's objects. Those of a set that is
// not linked are null.
#define FASTACT_TEST_DECLARE(isa, Table, family)                                       \
  namespace fastact::isa {                                                             \
  [[gnu::weak]] extern const Table family##_float, family##_double, family##_bfloat16, \
      family##_half;                                                                   \
  }
#define FASTACT_TEST_TABLES(isa, family)                                 \
  {                                                                      \
    #isa, {                                                              \
      &fastact::isa::family##_float, &fastact::isa::family##_double,     \
          &fastact::isa::family##_bfloat16, &fastact::isa::family##_half \
    }                                                                    \
  }
#define FASTACT_TEST_KERNELS(Table, family)                                  \
  FASTACT_TEST_DECLARE(baseline, Table, family)                              \
  FASTACT_TEST_DECLARE(avx2, Table, family)                                  \
  FASTACT_TEST_DECLARE(avx512, Table, family)                                \
  namespace fastact::avx512_bf16 {                                           \
  [[gnu::weak]] extern const Table family##_bfloat16;                        \
  }                                                                          \
  static const fastact_test::Tables<fastact::Table> all_tables[] = {         \
      FASTACT_TEST_TABLES(baseline, family),                                 \
      FASTACT_TEST_TABLES(avx2, family),                                     \
      FASTACT_TEST_TABLES(avx512, family),                                   \
      {"avx512_bf16",                                                        \
       {&fastact::avx512::family##_float, &fastact::avx512::family##_double, \
        &fastact::avx512_bf16::family##_bfloat16, &fastact::avx512::family##_half}}};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- dtypes ------------------------------------------------------------------------------------

template <class T>
constexpr fastact::Dtype kDtypeOf = std::is_same_v<T, float>               ? fastact::kFloat32
                                    : std::is_same_v<T, double>            ? fastact::kFloat64
                                    : std::is_same_v<T, fastact::BFloat16> ? fastact::kBFloat16Dtype
                                                                           : fastact::kFloat16;
// The distance of 1 and the next number, and the smallest one.
template <class T>
constexpr double kEpsilon = std::is_same_v<T, float>               ? 0x1p-23
                            : std::is_same_v<T, double>            ? 0x1p-52
                            : std::is_same_v<T, fastact::BFloat16> ? 0x1p-7
                                                                   : 0x1p-10;
template <class T>
constexpr double kSmallest = std::is_same_v<T, double>              ? 0x1p-1074
                             : std::is_same_v<T, float>             ? 0x1p-149
                             : std::is_same_v<T, fastact::BFloat16> ? 0x1p-133
                                                                    : 0x1p-24;

template <class T>
double value_of(T x) {
  return fastact::load_scalar(&x);
}
template <class T>
T rounded(double x) {
  T to;
  if constexpr (std::is_same_v<T, double>) {
    to = x;
  } else {
    fastact::from_float(static_cast<float>(x), &to);
  }
  return to;
}

// The same bits; all NaN are alike.
template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(value_of(a)) && std::isnan(value_of(b)));
}

// f(T()) for each dtype.
template <class F>
void for_each_dtype(const F& f) {
  const auto named = [&](const char* name, auto type) {
    const Context context("%s", name);
    f(type);
  };
  named("float", float());
  named("double", double());
  named("bfloat16", fastact::BFloat16());
  named("half", fastact::Half());
}

template <class T>
void fill(Walled<T>& memory, Random& random, double low, double high) {
  for (T& x : memory) x = rounded<T>(random.uniform(low, high));
}

// main() of a program whose kernels are `tables`; `chosen` gets those of the set that is named.
template <class Table, std::size_t N>
int run_with(const Tables<Table> (&tables)[N], const Table* const*& chosen, int count,
             char** arguments) {
  for (const Tables<Table>& one : tables) {
    if (count > 1 && !std::strcmp(one.isa, arguments[1])) {
      for (const Table* table : one.of_dtype) {
        if (!table) {
          std::printf("%s is not linked\n", one.isa);
          return 127;
        }
      }
      chosen = one.of_dtype;
      return run_tests(count - 2, arguments + 2);
    }
  }
  std::printf("usage: PROGRAM INSTRUCTION_SET [a part of a test's name ...]\n");
  return 127;
}

}  // namespace fastact_test
