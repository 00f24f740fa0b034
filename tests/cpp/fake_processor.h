// Included before csrc/cpu/dispatch.cpp: the processor has the features that FAKE_PROCESSOR names.
#pragma once

#include <cstdlib>
#include <cstring>

inline bool fake_cpu_supports(const char* feature) {
  const char* features = std::getenv("FAKE_PROCESSOR");
  return features && std::strstr(features, feature);
}

#define __builtin_cpu_supports(feature) fake_cpu_supports(feature)
