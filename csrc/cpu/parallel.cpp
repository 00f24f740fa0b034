#include "cpu/parallel.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace fastact {
namespace {

bool forked = false;

#if !defined(_WIN32)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

bool in_forked_child() { return forked; }

}  // namespace fastact
