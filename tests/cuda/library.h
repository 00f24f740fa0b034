// What every library of emulated kernels needs: its functions' names, and a dtype's number as a
// type. Include it after the kernels.
#pragma once

#include <string>

#define TEST_API extern "C" __attribute__((visibility("default")))

namespace fastact {

// f(a zero of the type): float, double, bfloat16, float16. FASTACT_TEST_FEW: float alone.
template <class F>
bool with_dtype(int dtype, const F& f) {
#ifdef FASTACT_TEST_FEW
  return dtype == 0 && f(float());
#else
  switch (dtype) {
    case 0:
      return f(float());
    case 1:
      return f(double());
    case 2:
      return f(BFloat16());
    default:
      return f(Half());
  }
#endif
}

}  // namespace fastact
