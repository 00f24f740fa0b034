// The 16-bit floating-point types as they lie in memory, and their conversions one at a time. All
// arithmetic happens in float; a store rounds once, to nearest even. NaN stays NaN (the payload may
// change), infinities and subnormal numbers are kept.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/config.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

FASTACT_FN float bits_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

FASTACT_FN uint32_t float_as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

FASTACT_FN float to_float(float x) { return x; }

FASTACT_FN float to_float(BFloat16 x) { return bits_as_float(static_cast<uint32_t>(x.bits) << 16); }

FASTACT_FN float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = x.bits & 0x7fff;
  // Shifted into place, exponent and mantissa read as x * 2^-112: one multiplication fixes normal
  // and subnormal numbers alike.
  const float value = bits_as_float(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00 ? 0x7f800000u : 0;
  return bits_as_float(float_as_bits(value) | special | sign);
}

FASTACT_FN BFloat16 to_bfloat16(float x) {
  const uint32_t bits = float_as_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40;
  return {static_cast<uint16_t>(x != x ? quiet_nan : rounded)};
}

FASTACT_FN Half to_half(float x) {
  const uint32_t bits = float_as_bits(x);
  const uint32_t magnitude = bits & 0x7fffffff;
  const uint32_t sign = (bits >> 16) & 0x8000;
  // Normal results: round the 13 bits off as an integer; a carry moves into the exponent.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal results: adding 0.5 puts the last bit of the result into the last bit of the sum.
  const uint32_t subnormal = float_as_bits(bits_as_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // 65520 and more: infinity
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return {static_cast<uint16_t>(result | sign)};
}

FASTACT_FN void from_float(float x, float* to) { *to = x; }
FASTACT_FN void from_float(float x, BFloat16* to) { *to = to_bfloat16(x); }
FASTACT_FN void from_float(float x, Half* to) { *to = to_half(x); }

// One element of memory in the type it is computed in.
FASTACT_FN float load_scalar(const float* p) { return *p; }
FASTACT_FN double load_scalar(const double* p) { return *p; }
FASTACT_FN float load_scalar(const BFloat16* p) { return to_float(*p); }
FASTACT_FN float load_scalar(const Half* p) { return to_float(*p); }

}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact
