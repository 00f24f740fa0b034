// Which of Winograd's algorithms 3x3 convolutions may use: one setting of the process.
#include <atomic>

#include "core/checks.h"
#include "ops/conv/conv.h"

namespace fastact {
namespace {

std::atomic<Winograd> setting = Winograd::kSafe;
constexpr const char* kNames[] = {"off", "safe", "fast"};

}  // namespace

Winograd winograd_setting(const OperatorName& op, std::optional<c10::string_view> name) {
  if (!name) {
    return setting.load(std::memory_order_relaxed);
  }
  for (int i = 0; i < 3; ++i) {
    if (*name == kNames[i]) {
      return static_cast<Winograd>(i);
    }
  }
  TORCH_CHECK_VALUE(false, op, "winograd: expected 'off', 'safe' or 'fast', got '", *name, "'");
}

void set_winograd(c10::string_view name) {
  setting.store(winograd_setting("set_winograd", name), std::memory_order_relaxed);
}

std::string winograd() { return kNames[static_cast<int>(setting.load())]; }

}  // namespace fastact
