// What a test program needs: tests that register themselves, comparisons that say what they found,
// and memory with nothing behind it. The program prints a line for each failure and returns how
// many tests failed, at most 125; its arguments choose tests by a part of their names.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

namespace fastact_test {

struct Test {
  std::string name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(std::string name, void (*run)()) { tests().push_back({std::move(name), run}); }
};

#define FASTACT_TEST(name)                                             \
  static void name();                                                  \
  static const fastact_test::Register name##_registered(#name, &name); \
  static void name()

// ---- comparisons -------------------------------------------------------------------------------

struct State {
  std::string test;
  std::string where;  // within the test: see Context
  long checks = 0;
  long failures = 0;  // of this test
};
inline State state;

// What a failure in its scope says besides: which dtype, which length ...
class Context {
 public:
  template <class... A>
  explicit Context(const char* format, A... values) : outer_(state.where) {
    char text[200];
    std::snprintf(text, sizeof text, format, values...);
    state.where += std::string(state.where.empty() ? "" : ", ") + text;
  }
  ~Context() { state.where = outer_; }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

 private:
  std::string outer_;
};

// The first few of a test are enough.
constexpr long kShown = 10;

inline bool report(bool passed, const char* file, int line, const std::string& text) {
  ++state.checks;
  if (!passed && ++state.failures <= kShown) {
    std::printf("%s:%d: %s: %s%s%s\n", file, line, state.test.c_str(), state.where.c_str(),
                state.where.empty() ? "" : ": ", text.c_str());
  }
  return passed;
}

template <class T>
std::string text_of(T value) {
  char text[80];
  if constexpr (std::is_floating_point_v<T>) {
    std::snprintf(text, sizeof text, "%.9g (%a)", static_cast<double>(value),
                  static_cast<double>(value));
  } else {
    std::snprintf(text, sizeof text, "%lld", static_cast<long long>(value));
  }
  return text;
}

// The same bits; all NaN are alike.
template <class T>
bool same(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a && b != b) return true;
  }
  return std::memcmp(&a, &b, sizeof a) == 0;
}

template <class T>
bool check_same(T actual, T expected, const char* file, int line, const char* what) {
  if (same(actual, expected)) {
    ++state.checks;
    return true;
  }
  return report(false, file, line,
                std::string(what) + " is " + text_of(actual) + ", expected " + text_of(expected));
}

// Also true where both are the same infinity, or NaN.
inline bool check_near(double actual, double expected, double error, const char* file, int line,
                       const char* what) {
  if (std::abs(actual - expected) <= error || actual == expected || same(actual, expected)) {
    ++state.checks;
    return true;
  }
  return report(false, file, line,
                std::string(what) + " is " + text_of(actual) + ", expected " + text_of(expected) +
                    " within " + text_of(error));
}

// More about a failure that has just been reported.
template <class... A>
void note(const char* format, A... values) {
  if (state.failures <= kShown) {
    std::printf("    ");
    std::printf(format, values...);
    std::printf("\n");
  }
}

#define CHECK(condition) \
  (fastact_test::report((condition), __FILE__, __LINE__, #condition " does not hold"))
#define CHECK_SAME(actual, expected) \
  (fastact_test::check_same((actual), (expected), __FILE__, __LINE__, #actual))
#define CHECK_NEAR(actual, expected, error) \
  (fastact_test::check_near((actual), (expected), (error), __FILE__, __LINE__, #actual))

// ---- memory ------------------------------------------------------------------------------------

enum class Place { kBeforeTheWall, kBehindTheWall };

// Rooms between walls that are used again, by their size: the kernel takes 20 us for a new one.
inline std::multimap<std::size_t, char*>& unused_rooms() {
  static std::multimap<std::size_t, char*> all;
  return all;
}

inline char* take_room(std::size_t size, std::size_t page) {
  const auto found = unused_rooms().find(size);
  if (found != unused_rooms().end()) {
    char* const room = found->second;
    unused_rooms().erase(found);
    return room;
  }
  void* memory =
      mmap(nullptr, size + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("mmap");
    std::abort();
  }
  char* const all = static_cast<char*>(memory);
  mprotect(all, page, PROT_NONE);
  mprotect(all + page + size, page, PROT_NONE);
  return all + page;
}

// `count` elements, between pages that may be neither read nor written: next to the one behind or
// before them, with known bytes on the other side, which the destructor looks at.
template <class T>
class Walled {
 public:
  explicit Walled(std::size_t count, Place place = Place::kBeforeTheWall) : count_(count) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    room_ = (count * sizeof(T) + page - 1) / page * page + page;
    begin_ = take_room(room_, page);
    std::memset(begin_, kByte, room_);
    data_ = place == Place::kBeforeTheWall ? begin_ + room_ - count * sizeof(T) : begin_;
  }
  Walled(Walled&& other) noexcept
      : count_(other.count_), room_(other.room_), begin_(other.begin_), data_(other.data_) {
    other.begin_ = nullptr;
  }
  Walled& operator=(Walled&&) = delete;
  ~Walled() {
    if (begin_) {
      check_surroundings();
      unused_rooms().emplace(room_, begin_);
    }
  }

  T* data() { return reinterpret_cast<T*>(data_); }
  const T* data() const { return reinterpret_cast<const T*>(data_); }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  std::size_t size() const { return count_; }
  T* begin() { return data(); }
  T* end() { return data() + count_; }

  void check_surroundings() const {
    const char* last = data_ + count_ * sizeof(T);
    bool untouched = true;
    for (const char* p = begin_; p < data_; ++p) untouched = untouched && *p == kByte;
    for (const char* p = last; p < begin_ + room_; ++p) untouched = untouched && *p == kByte;
    report(untouched, __FILE__, __LINE__, "memory beside the array was written to");
  }

 private:
  static constexpr char kByte = 0x5b;

  std::size_t count_, room_;
  char *begin_, *data_;
};

// ---- random numbers ----------------------------------------------------------------------------

// The same everywhere: the distributions of the standard library are not.
class Random {
 public:
  explicit Random(uint64_t seed = 1) : state_(seed) {}

  uint64_t bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  double uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
  }
  int64_t integer(int64_t low, int64_t high) {  // both included
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }

 private:
  uint64_t state_;
};

// ---- the program -------------------------------------------------------------------------------

inline void on_signal(int signal) {
  // Nothing here is safe in a handler but write() and _exit(): good enough for a last word.
  std::printf(
      "%s: %s: ended by signal %d: memory outside was touched, or an instruction is "
      "missing\n",
      state.test.c_str(), state.where.c_str(), signal);
  std::fflush(stdout);
  _exit(126);
}

inline int run_tests(int count, char** names) {
#if !defined(__SANITIZE_ADDRESS__)
  for (int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) std::signal(signal, &on_signal);
#endif
  int failed = 0, run = 0;
  for (const Test& test : tests()) {
    bool wanted = count == 0;
    for (int i = 0; i < count; ++i) wanted |= test.name.find(names[i]) != std::string::npos;
    if (!wanted) continue;
    state = {};
    state.test = test.name;
    test.run();
    // A test that compares nothing has not been passed.
    report(state.checks > 0, __FILE__, __LINE__, "nothing was checked");
    if (state.failures > kShown) {
      std::printf("%s: and %ld more\n", test.name.c_str(), state.failures - kShown);
    }
    ++run;
    failed += state.failures > 0;
  }
  std::printf("%d of %d tests passed\n", run - failed, run);
  return failed > 125 ? 125 : run == 0 ? 1 : failed;
}

}  // namespace fastact_test
