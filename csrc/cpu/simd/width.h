// The widest vectors that this object may use, by what the compiler was told to generate.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "cpu/simd/avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "cpu/simd/avx2.h"
#else
#include "cpu/simd/portable.h"
#endif
