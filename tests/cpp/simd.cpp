// Does every operation of cpu/simd/ do in each lane what its description in math/scalar.h says?
// Compiled once for each instruction set, with its flags: the width is the one that those choose.
#include <algorithm>
#include <array>
#include <limits>

#include "check.h"
#include "cpu/simd/width.h"

using namespace fastact;
using fastact_test::Context;
using fastact_test::Place;
using fastact_test::Random;
using fastact_test::same;
using fastact_test::Walled;

namespace {

template <class V>
using Lanes = std::array<typename V::scalar, V::size>;

template <class V>
Lanes<V> lanes_of(const V& v) {
  Lanes<V> lanes;
  v.store(lanes.data());
  return lanes;
}
template <class V>
V from(const Lanes<V>& lanes) {
  return V::load(lanes.data());
}
// 1 where it is true.
template <class V, class M>
Lanes<V> lanes_of_mask(const M& mask) {
  using T = typename V::scalar;
  return lanes_of(select(mask, V(T(1)), V(T(0))));
}

// f(V()) for each vector type: registers and groups of them.
template <class F>
void for_each_type(const F& f) {
  const auto named = [&](const char* name, auto v) {
    const Context context("%s", name);
    f(v);
  };
  named("Vec<float>", Vec<float>());
  named("Vec<double>", Vec<double>());
  named("Pack<Vec<float>, 2>", Pack<Vec<float>, 2>());
  named("Pack<Vec<double>, 2>", Pack<Vec<double>, 2>());
}

// Every kind of number, both signs.
template <class T>
std::vector<T> numbers() {
  using L = std::numeric_limits<T>;
  std::vector<T> values = {0,
                           L::denorm_min(),
                           3 * L::denorm_min(),
                           L::min() - L::denorm_min(),
                           L::min(),
                           L::epsilon(),
                           T(0.1),
                           T(0.5),
                           T(0.75),
                           1,
                           1 + L::epsilon(),
                           T(1.5),
                           2,
                           T(2.5),
                           3,
                           T(3.5),
                           6,
                           T(1e4),
                           T(0x1p22),
                           T(0x1.8p22) + T(0.5),
                           T(0x1p23) + 1,
                           T(0x1p51),
                           T(0x1p52) + 1,
                           L::max() / 2,
                           L::max(),
                           L::infinity(),
                           L::quiet_NaN()};
  const std::size_t count = values.size();
  for (std::size_t i = 0; i < count; ++i) values.push_back(-values[i]);
  return values;
}

// Every pair of them, as many at a time as there are lanes.
template <class V, class F>
void for_each_pair(const F& f) {
  using T = typename V::scalar;
  const std::vector<T> values = numbers<T>();
  const std::size_t n = values.size(), total = n * n;
  for (std::size_t first = 0; first < total; first += V::size) {
    Lanes<V> a, b;
    for (std::size_t i = 0; i < V::size; ++i) {
      const std::size_t pair = (first + i) % total;
      a[i] = values[pair / n];
      b[i] = values[pair % n];
    }
    f(a, b);
  }
}

template <class V, class F, class G>
void check_unary(const char* name, const F& f, const G& expected) {
  const Context context("%s", name);
  for_each_pair<V>([&](const Lanes<V>& a, const Lanes<V>&) {
    const Lanes<V> r = lanes_of(f(from<V>(a)));
    for (int i = 0; i < V::size; ++i) {
      if (!CHECK_SAME(r[i], expected(a[i]))) fastact_test::note("of %a", double(a[i]));
    }
  });
}

template <class V, class F, class G>
void check_binary(const char* name, const F& f, const G& expected) {
  const Context context("%s", name);
  for_each_pair<V>([&](const Lanes<V>& a, const Lanes<V>& b) {
    const Lanes<V> r = lanes_of(f(from<V>(a), from<V>(b)));
    for (int i = 0; i < V::size; ++i) {
      if (!CHECK_SAME(r[i], expected(a[i], b[i]))) {
        fastact_test::note("of %a and %a", double(a[i]), double(b[i]));
      }
    }
  });
}

template <class V, class F, class G>
void check_comparison(const char* name, const F& f, const G& expected) {
  using T = typename V::scalar;
  check_binary<V>(
      name, [&](V a, V b) { return select(f(a, b), V(T(1)), V(T(0))); },
      [&](T a, T b) { return T(expected(a, b) ? 1 : 0); });
}

template <class T>
T bits_to(uint64_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace

// ---- arithmetic --------------------------------------------------------------------------------

FASTACT_TEST(arithmetic) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    check_binary<V>("a + b", [](V a, V b) { return a + b; }, [](T a, T b) { return a + b; });
    check_binary<V>("a - b", [](V a, V b) { return a - b; }, [](T a, T b) { return a - b; });
    check_binary<V>("a * b", [](V a, V b) { return a * b; }, [](T a, T b) { return a * b; });
    check_binary<V>("a / b", [](V a, V b) { return a / b; }, [](T a, T b) { return a / b; });
    check_unary<V>("-a", [](V a) { return -a; }, [](T a) { return -a; });
  });
}

FASTACT_TEST(minimum_and_maximum) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    // The second operand where one is NaN, or where both are zeros.
    check_binary<V>(
        "min", [](V a, V b) { return min(a, b); }, [](T a, T b) { return a < b ? a : b; });
    check_binary<V>(
        "max", [](V a, V b) { return max(a, b); }, [](T a, T b) { return a > b ? a : b; });
  });
}

FASTACT_TEST(signs) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    check_unary<V>("abs", [](V a) { return abs(a); }, [](T a) { return std::abs(a); });
    check_binary<V>(
        "copysign", [](V a, V b) { return copysign(a, b); },
        [](T a, T b) { return std::copysign(a, b); });
    // Of NaN, too, the sign.
    const V nan(std::numeric_limits<T>::quiet_NaN());
    for (T r : lanes_of(copysign(nan, V(T(-1))))) CHECK(std::signbit(r));
    for (T r : lanes_of(abs(-nan))) CHECK(!std::signbit(r));
  });
}

FASTACT_TEST(rounding_to_integers) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    check_unary<V>("round", [](V a) { return round(a); }, [](T a) { return std::nearbyint(a); });
    for (T first = -40; first < 40; first += V::size / T(4)) {
      Lanes<V> a;
      for (int i = 0; i < V::size; ++i) a[i] = first + i / T(4);
      const Lanes<V> r = lanes_of(round(from<V>(a)));
      for (int i = 0; i < V::size; ++i) CHECK_SAME(r[i], std::nearbyint(a[i]));
    }
  });
}

FASTACT_TEST(multiplication_and_addition) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    const auto expected = [](T a, T b, T c) { return V::has_fma ? std::fma(a, b, c) : a * b + c; };
    Random random;
    for (int c = 0; c < 40; ++c) {
      // Near -a * b, so that what the product's rounding loses is all of the result.
      const bool cancels = c % 2;
      const T addend = numbers<T>()[c];
      for_each_pair<V>([&](const Lanes<V>& a, const Lanes<V>& b) {
        Lanes<V> left = a, right = b, third;
        for (int i = 0; i < V::size; ++i) {
          if (cancels) {
            left[i] = T(random.uniform(-2, 2));
            right[i] = T(random.uniform(-2, 2));
          }
          third[i] = cancels ? -(left[i] * right[i]) : addend;
        }
        const V x = from<V>(left), y = from<V>(right), z = from<V>(third);
        const Lanes<V> sum = lanes_of(fma(x, y, z)), difference = lanes_of(fnma(x, y, z));
        for (int i = 0; i < V::size; ++i) {
          CHECK_SAME(sum[i], expected(left[i], right[i], third[i]));
          CHECK_SAME(difference[i], expected(-left[i], right[i], third[i]));
        }
      });
    }
  });
}

FASTACT_TEST(powers_of_two) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    const int most = sizeof(T) == 8 ? 2044 : 252;
    const std::vector<T> values = numbers<T>();
    for (int n = -most; n <= most; n += n > -300 && n < 300 ? 1 : 13) {
      Lanes<V> a;
      for (std::size_t first = 0; first < values.size(); first += V::size) {
        for (std::size_t i = 0; i < V::size; ++i) a[i] = values[(first + i) % values.size()];
        const Lanes<V> r = lanes_of(scale(from<V>(a), V(T(n))));
        // Zeros of a fraction that is far below lose their sign nowhere.
        for (int i = 0; i < V::size; ++i) {
          if (!CHECK_SAME(r[i], std::ldexp(a[i], n)))
            fastact_test::note("%a 2^%d", double(a[i]), n);
        }
      }
    }
    // Every lane its own.
    Lanes<V> a, n;
    for (int i = 0; i < V::size; ++i) {
      a[i] = T(1) + T(i) / 4;
      n[i] = T(3 * i - V::size);
    }
    const Lanes<V> r = lanes_of(scale(from<V>(a), from<V>(n)));
    for (int i = 0; i < V::size; ++i) CHECK_SAME(r[i], std::ldexp(a[i], int(n[i])));
  });
}

// The widths with look-ups have more ways to a power of two.
template <class V>
void check_powers_by_exponent() {
  if constexpr (V::has_lookup) {
    for (int n = -126; n <= 127; ++n) {
      for (float fraction : {0.0f, 0.25f, 0.5f, 0.9375f}) {
        if (n == 127 && fraction > 0) continue;
        for (float r : lanes_of(power_of_two(V(n + fraction)))) CHECK_SAME(r, std::ldexp(1.0f, n));
      }
    }
    for (float a : {0.1f, 0.1234567f, 1.0f, 1.9999999f, 120.0f, -0.75f}) {
      for (int n = -200; n <= 57; ++n) {
        // The result may have been made 0 where it would round to that.
        for (float r : lanes_of(scale_down(V(a), V(static_cast<float>(n))))) {
          CHECK_NEAR(r, std::ldexp(a, n), 0);
        }
      }
    }
  } else {
    CHECK(V::lookup_entries == 0);
  }
}

FASTACT_TEST(powers_of_two_by_exponents) {
  check_powers_by_exponent<Vec<float>>();
  check_powers_by_exponent<Pack<Vec<float>, 4>>();
}

// ---- comparisons and masks ---------------------------------------------------------------------

FASTACT_TEST(comparisons) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    check_comparison<V>("a < b", [](V a, V b) { return a < b; }, [](T a, T b) { return a < b; });
    check_comparison<V>("a <= b", [](V a, V b) { return a <= b; }, [](T a, T b) { return a <= b; });
    check_comparison<V>("a > b", [](V a, V b) { return a > b; }, [](T a, T b) { return a > b; });
    check_comparison<V>("a >= b", [](V a, V b) { return a >= b; }, [](T a, T b) { return a >= b; });
    check_comparison<V>("a == b", [](V a, V b) { return a == b; }, [](T a, T b) { return a == b; });
    check_comparison<V>("a != b", [](V a, V b) { return a != b; }, [](T a, T b) { return a != b; });
    check_comparison<V>("isnan", [](V a, V) { return isnan(a); }, [](T a, T) { return a != a; });
  });
}

FASTACT_TEST(masks) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    const auto check = [](const auto& mask, const auto& expected) {
      const Lanes<V> lanes = lanes_of_mask<V>(mask);
      bool some = false;
      for (int i = 0; i < V::size; ++i) {
        CHECK_SAME(lanes[i], T(expected(i) ? 1 : 0));
        some |= expected(i);
      }
      CHECK(any(mask) == some);
    };
    Lanes<V> a;
    for (int i = 0; i < V::size; ++i) a[i] = T(i);
    const V numbers = from<V>(a);
    check(numbers < V(T(-1)), [](int) { return false; });
    check(!(numbers < V(T(-1))), [](int) { return true; });
    // One lane alone, each in its turn.
    for (int lane = 0; lane < V::size; ++lane) {
      const auto below = numbers < V(T(lane)), here = numbers == V(T(lane));
      check(here, [&](int i) { return i == lane; });
      check(!here, [&](int i) { return i != lane; });
      check(below | here, [&](int i) { return i <= lane; });
      check(below & here, [&](int) { return false; });
      check(below & !(numbers < V(T(lane - 1))), [&](int i) { return i == lane - 1; });
      // Each lane of select() from its own operand.
      const Lanes<V> chosen = lanes_of(select(below, numbers, -numbers));
      for (int i = 0; i < V::size; ++i) CHECK_SAME(chosen[i], i < lane ? T(i) : -T(i));
    }
  });
}

// ---- bits --------------------------------------------------------------------------------------

FASTACT_TEST(bits) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    using I = typename V::Int;
    using Integer = typename I::scalar;
    static_assert(sizeof(Integer) == sizeof(T));
    const auto of = [](T x) {
      Integer bits;
      std::memcpy(&bits, &x, sizeof x);
      return bits;
    };
    const auto back = [](Integer bits) { return bits_to<T>(static_cast<uint64_t>(bits)); };
    const auto check = [&](const char* name, const auto& f, const auto& expected) {
      const Context context("%s", name);
      for_each_pair<V>([&](const Lanes<V>& a, const Lanes<V>& b) {
        const V r = from_bits<V>(f(to_bits(from<V>(a)), to_bits(from<V>(b))));
        const Lanes<V> lanes = lanes_of(r);
        for (int i = 0; i < V::size; ++i) {
          const T x = back(expected(of(a[i]), of(b[i])));
          CHECK(std::memcmp(&lanes[i], &x, sizeof x) == 0);
        }
      });
    };
    using U = std::make_unsigned_t<Integer>;
    check("to_bits", [](I a, I) { return a; }, [](Integer a, Integer) { return a; });
    check(
        "+", [](I a, I b) { return a + b; },
        [](Integer a, Integer b) { return Integer(U(a) + U(b)); });
    check(
        "-", [](I a, I b) { return a - b; },
        [](Integer a, Integer b) { return Integer(U(a) - U(b)); });
    check("&", [](I a, I b) { return a & b; }, [](Integer a, Integer b) { return Integer(a & b); });
    check("|", [](I a, I b) { return a | b; }, [](Integer a, Integer b) { return Integer(a | b); });
    check(
        "shift_left<7>", [](I a, I) { return shift_left<7>(a); },
        [](Integer a, Integer) { return Integer(U(a) << 7); });
    check(
        "shift_right<9>", [](I a, I) { return shift_right<9>(a); },
        [](Integer a, Integer) { return Integer(U(a) >> 9); });
    check(
        "I(x)", [](I, I) { return I(Integer(-123456)); },
        [](Integer, Integer) { return Integer(-123456); });
    if constexpr (sizeof(T) == 4) {
      check(
          "max", [](I a, I b) { return max(a, b); },
          [](Integer a, Integer b) { return std::max(a, b); });
      // In one lane alone, each in its turn.
      for (int lane = 0; lane < V::size; ++lane) {
        Lanes<V> a;
        for (int i = 0; i < V::size; ++i) a[i] = back(i == lane ? 1000 : -5);
        const I integers = to_bits(from<V>(a));
        CHECK(any_greater(integers, 999));
        CHECK(!any_greater(integers, 1000));
        CHECK(any_greater(integers, -6));
      }
    }
  });
}

// ---- look-ups ----------------------------------------------------------------------------------

template <class V, int kEntries>
void check_lookup() {
  alignas(64) float table[kEntries];
  for (int i = 0; i < kEntries; ++i) table[i] = 100.0f + static_cast<float>(i);
  for (int first = -3 * kEntries; first < 3 * kEntries; ++first) {
    Lanes<V> a;
    for (int i = 0; i < V::size; ++i) {
      const int32_t index = first + 5 * i;
      std::memcpy(&a[i], &index, sizeof index);
    }
    const Lanes<V> r = lanes_of(lookup<V>(table, to_bits(from<V>(a))));
    for (int i = 0; i < V::size; ++i) {
      CHECK_SAME(r[i], table[((first + 5 * i) % kEntries + kEntries) % kEntries]);
    }
  }
}

template <class V>
void check_lookups() {
  if constexpr (V::has_lookup) {
    check_lookup<V, V::lookup_entries>();
    check_lookup<V, V::lookup_entries == 32 ? 16 : 2 * V::lookup_entries>();
  } else {
    CHECK(V::lookup_entries == 0);
  }
}

FASTACT_TEST(lookups) {
  check_lookups<Vec<float>>();
  check_lookups<Pack<Vec<float>, 4>>();
}

// ---- across lanes ------------------------------------------------------------------------------

FASTACT_TEST(sums_and_maxima_of_lanes) {
  for_each_type([](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    Random random;
    for (int round = 0; round < 50; ++round) {
      Lanes<V> a;
      T sum = 0, most = -std::numeric_limits<T>::infinity();
      for (T& lane : a) {
        lane = T(random.integer(-1000, 1000));  // sums are exact
        sum += lane;
        most = std::max(most, lane);
      }
      CHECK_SAME(horizontal_sum(from<V>(a)), sum);
      CHECK_SAME(horizontal_max(from<V>(a)), most);
    }
    for (int lane = 0; lane < V::size; ++lane) {
      Lanes<V> a;
      a.fill(-std::numeric_limits<T>::infinity());
      a[lane] = T(-3);
      CHECK_SAME(horizontal_max(from<V>(a)), T(-3));
      a.fill(T(1));
      a[lane] = std::numeric_limits<T>::infinity();
      CHECK_SAME(horizontal_sum(from<V>(a)), a[lane]);
      a[lane] = std::numeric_limits<T>::quiet_NaN();
      CHECK_SAME(horizontal_sum(from<V>(a)), a[lane]);
    }
  });
}

template <class V, int N>
void check_several_sums() {
  using T = typename V::scalar;
  Random random;
  V v[N];
  for (V& one : v) {
    Lanes<V> a;
    for (T& lane : a) lane = T(random.uniform(-1, 1));
    one = from<V>(a);
  }
  Walled<T> sums(N);
  horizontal_sums(v, sums.data());
  for (int i = 0; i < N; ++i) CHECK_SAME(sums[i], horizontal_sum(v[i]));  // in the same order
}

FASTACT_TEST(several_sums_of_lanes) {
  check_several_sums<Vec<float>, 1>();
  check_several_sums<Vec<float>, 7>();
  check_several_sums<Vec<float>, 8>();
  check_several_sums<Vec<float>, 19>();
  check_several_sums<Vec<double>, 8>();
}

FASTACT_TEST(transposition) {
  const auto check = [](auto type) {
    using V = decltype(type);
    using T = typename V::scalar;
    V rows[V::size];
    for (int i = 0; i < V::size; ++i) {
      Lanes<V> a;
      for (int j = 0; j < V::size; ++j) a[j] = T(100 * i + j);
      rows[i] = from<V>(a);
    }
    transpose(rows);
    for (int i = 0; i < V::size; ++i) {
      const Lanes<V> lanes = lanes_of(rows[i]);
      for (int j = 0; j < V::size; ++j) CHECK_SAME(lanes[j], T(100 * j + i));
    }
  };
  check(Vec<float>());
  check(Vec<double>());
}

template <class V, class W>
void check_widening(const W& wide, const Lanes<V>& a) {
  const Lanes<W> lanes = lanes_of(wide);
  static_assert(W::size == V::size);
  for (int i = 0; i < V::size; ++i) CHECK_SAME(lanes[i], double(a[i]));
}

FASTACT_TEST(float_lanes_in_double_lanes) {
  for_each_pair<Vec<float>>([](const Lanes<Vec<float>>& a, const Lanes<Vec<float>>&) {
    const auto wide = widen<Full>(from<Vec<float>>(a));
    check_widening<Vec<float>>(wide, a);
    const Lanes<Vec<float>> back = lanes_of(narrow<Vec<float>>(wide));
    for (std::size_t i = 0; i < a.size(); ++i) CHECK_SAME(back[i], a[i]);
    // Rounded once: a third has digits below a float's.
    const Lanes<Vec<float>> third = lanes_of(narrow<Vec<float>>(wide * decltype(wide)(1.0 / 3.0)));
    for (std::size_t i = 0; i < a.size(); ++i) {
      CHECK_SAME(third[i], static_cast<float>(double(a[i]) * (1.0 / 3.0)));
    }
  });
  using Group = Pack<Vec<float>, 4>;
  for_each_pair<Group>([](const Lanes<Group>& a, const Lanes<Group>&) {
    const auto wide = widen<Short>(from<Group>(a));
    check_widening<Group>(wide, a);
    const Lanes<Group> back = lanes_of(narrow<Group>(wide));
    for (std::size_t i = 0; i < a.size(); ++i) CHECK_SAME(back[i], a[i]);
  });
}

FASTACT_TEST(groups) {
  using V = Vec<float>;
  using Group = Pack<V, 4>;
  Lanes<V> a;
  for (int i = 0; i < V::size; ++i) a[i] = float(i);
  const Lanes<Group> all = lanes_of(Group::broadcast(from<V>(a)));
  for (int i = 0; i < Group::size; ++i) CHECK_SAME(all[i], a[i % V::size]);
  Lanes<Group> b;
  for (int i = 0; i < Group::size; ++i) b[i] = float(i);
  // By pairs of registers, and by one where their number is odd.
  const auto sum = [](auto p, auto q) { return p + q; };
  const Lanes<Group> sums = lanes_of(map_pairs(from<Group>(b), from<Group>(b), sum));
  for (int i = 0; i < Group::size; ++i) CHECK_SAME(sums[i], 2 * b[i]);
  const Lanes<V> one = lanes_of(map_pairs(from<V>(a), from<V>(a), sum));
  for (int i = 0; i < V::size; ++i) CHECK_SAME(one[i], 2 * a[i]);
}

// ---- memory ------------------------------------------------------------------------------------

// What lies in memory, from a small integer.
template <class M>
M stored(int value) {
  M m;
  if constexpr (sizeof(M) == 2) {
    from_float(static_cast<float>(value), &m);
  } else {
    m = static_cast<M>(value);
  }
  return m;
}

template <class V, class M>
void check_memory(const char* name) {
  using T = typename V::scalar;
  const Context context("%s", name);
  for (const Place place : {Place::kBeforeTheWall, Place::kBehindTheWall}) {
    for (int n = 0; n <= V::size; ++n) {
      const Context of_count("%d lanes", n);
      Walled<M> from_here(n, place), to_here(n, place);
      for (int i = 0; i < n; ++i) from_here[i] = stored<M>(i + 1);
      const V v = V::load(from_here.data(), n);
      const Lanes<V> lanes = lanes_of(v);
      for (int i = 0; i < V::size; ++i) CHECK_SAME(lanes[i], T(i < n ? i + 1 : 0));
      v.store(to_here.data(), n);
      for (int i = 0; i < n; ++i) {
        CHECK(std::memcmp(&to_here[i], &from_here[i], sizeof(M)) == 0);
      }
    }
    Walled<M> whole(V::size, place), copy(V::size, place);
    for (int i = 0; i < V::size; ++i) whole[i] = stored<M>(i + 1);
    const V v = V::load(whole.data());
    const Lanes<V> lanes = lanes_of(v);
    for (int i = 0; i < V::size; ++i) CHECK_SAME(lanes[i], T(i + 1));
    v.store(copy.data());
    CHECK(std::memcmp(copy.data(), whole.data(), V::size * sizeof(M)) == 0);
  }
  // Of any alignment.
  Walled<M> room(V::size + 9);
  for (int offset = 0; offset < 9; ++offset) {
    for (M& m : room) m = stored<M>(77);
    Lanes<V> a;
    for (int i = 0; i < V::size; ++i) a[i] = T(i - 3);
    from<V>(a).store(room.data() + offset);
    const Lanes<V> lanes = lanes_of(V::load(room.data() + offset));
    for (int i = 0; i < V::size; ++i) CHECK_SAME(lanes[i], a[i]);
    for (int i = 0; i < V::size + 9; ++i) {
      const M beside = stored<M>(77);
      const bool inside = i >= offset && i < offset + V::size;
      CHECK(inside || std::memcmp(&room[i], &beside, sizeof(M)) == 0);
    }
  }
}

FASTACT_TEST(loads_and_stores) {
  check_memory<Vec<float>, float>("Vec<float> of float");
  check_memory<Vec<float>, BFloat16>("Vec<float> of BFloat16");
  check_memory<Vec<float>, Half>("Vec<float> of Half");
  check_memory<Vec<double>, double>("Vec<double>");
  check_memory<Pack<Vec<float>, 4>, float>("Pack<Vec<float>, 4> of float");
  check_memory<Pack<Vec<float>, 4>, BFloat16>("Pack<Vec<float>, 4> of BFloat16");
  check_memory<Pack<Vec<float>, 3>, Half>("Pack<Vec<float>, 3> of Half");
  check_memory<Pack<Vec<double>, 2>, double>("Pack<Vec<double>, 2>");
}

// ---- 16-bit numbers ----------------------------------------------------------------------------

namespace {

// Where the exponent stands and how it is biased: what a number means, without the vocabulary.
template <class M>
double meaning(uint16_t bits) {
  constexpr bool kIsHalf = std::is_same_v<M, Half>;
  constexpr int kFraction = kIsHalf ? 10 : 7, kBias = kIsHalf ? 15 : 127;
  const int exponent = (bits & 0x7fff) >> kFraction;
  const int fraction = bits & ((1 << kFraction) - 1);
  double value;
  if (exponent == 2 * kBias + 1) {
    value = fraction ? std::numeric_limits<double>::quiet_NaN()
                     : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = std::ldexp(fraction, 1 - kBias - kFraction);
  } else {
    value = std::ldexp((1 << kFraction) + fraction, exponent - kBias - kFraction);
  }
  return bits & 0x8000 ? -value : value;
}

template <class M>
constexpr uint16_t kInfinity = std::is_same_v<M, Half> ? 0x7c00 : 0x7f80;

// Stored in the lanes of whole vectors and of parts, and one at a time.
template <class M>
void check_stored(const std::vector<float>& values, const std::vector<uint16_t>& expected) {
  using V = Vec<float>;
  for (std::size_t first = 0; first + V::size <= values.size(); first += V::size) {
    M whole[V::size], part[V::size] = {};
    const V v = V::load(&values[first]);
    v.store(whole);
    v.store(part, V::size - 1);
    for (int i = 0; i < V::size; ++i) {
      const float x = values[first + i];
      const uint16_t right = expected[first + i];
      M alone;
      from_float(x, &alone);
      for (const uint16_t found :
           {whole[i].bits, i < V::size - 1 ? part[i].bits : right, alone.bits}) {
        const bool is_nan = (right & 0x7fff) > kInfinity<M>;
        if (!CHECK(is_nan ? (found & 0x7fff) > kInfinity<M> : found == right)) {
          fastact_test::note("%a: %04x, expected %04x", double(x), found, right);
        }
      }
    }
  }
}

template <class M>
void check_16_bits() {
  using V = Vec<float>;
  std::vector<float> values;
  std::vector<uint16_t> nearest;
  for (uint32_t first = 0; first < 65536; first += V::size) {
    M memory[V::size];
    for (int i = 0; i < V::size; ++i) memory[i].bits = static_cast<uint16_t>(first + i);
    const Lanes<V> lanes = lanes_of(V::load(memory));
    const Lanes<V> part = lanes_of(V::load(memory, V::size - 1));
    for (int i = 0; i < V::size; ++i) {
      const auto bits = static_cast<uint16_t>(first + i);
      const auto value = static_cast<float>(meaning<M>(bits));
      CHECK_SAME(lanes[i], value);
      if (i < V::size - 1) CHECK_SAME(part[i], value);
      CHECK_SAME(to_float(memory[i]), value);
      values.push_back(value);
      nearest.push_back(bits);
    }
  }
  check_stored<M>(values, nearest);
  // Halfway to the next number, which is even or not, and the floats beside that.
  values.clear();
  nearest.clear();
  for (uint32_t sign : {0u, 0x8000u}) {
    for (uint32_t bits = 0; bits < kInfinity<M>; ++bits) {
      const double low = meaning<M>(static_cast<uint16_t>(bits));
      // Infinity begins where the next number would be.
      const double high = bits + 1 == kInfinity<M>
                              ? 2 * low - meaning<M>(static_cast<uint16_t>(bits - 1))
                              : meaning<M>(static_cast<uint16_t>(bits + 1));
      const auto middle = static_cast<float>((low + high) / 2);
      for (const float x :
           {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, INFINITY)}) {
        const bool up = x == middle ? bits % 2 == 1 : x > middle;
        values.push_back(sign ? -x : x);
        nearest.push_back(static_cast<uint16_t>((bits + up) | sign));
      }
    }
  }
  values.resize(values.size() + V::size, 0.0f);
  nearest.resize(values.size(), 0);
  check_stored<M>(values, nearest);
  // Floats of any size, rounded as exact arithmetic rounds: between their two neighbours.
  values.clear();
  nearest.clear();
  Random random;
  for (int i = 0; i < 100 * V::size; ++i) {
    const auto x = bits_to<float>(random.bits() & 0x7fffffff);
    if (x != x) continue;
    uint32_t low = 0, high = kInfinity<M>;  // the largest number that is not above x
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      (meaning<M>(static_cast<uint16_t>(middle)) <= x ? low : high) = middle;
    }
    const double below = x - meaning<M>(static_cast<uint16_t>(low));
    const double step =
        low ? meaning<M>(static_cast<uint16_t>(low)) - meaning<M>(static_cast<uint16_t>(low - 1))
            : meaning<M>(1);
    const double next = low + 1 == kInfinity<M> ? meaning<M>(static_cast<uint16_t>(low)) + step
                                                : meaning<M>(static_cast<uint16_t>(low + 1));
    const double above = next - x;
    values.push_back(x);
    nearest.push_back(
        static_cast<uint16_t>(below < above || (below == above && low % 2 == 0) ? low : low + 1));
  }
  values.resize(values.size() / V::size * V::size + V::size, 0.0f);
  nearest.resize(values.size(), 0);
  check_stored<M>(values, nearest);
}

}  // namespace

FASTACT_TEST(bfloat16_conversions) { check_16_bits<BFloat16>(); }
FASTACT_TEST(half_conversions) { check_16_bits<Half>(); }

// Products of neighbouring bfloat16 numbers, where the processor has them.
template <class V, class M>
void check_pairs() {
  if constexpr (kHasDotPairs) {
    constexpr int kElements = 2 * V::size;
    const auto bfloat16 = [](int x) { return to_bfloat16(static_cast<float>(x)); };
    for (int n = 0; n <= kElements; ++n) {
      Walled<M> a(n), b(n);
      for (int i = 0; i < n; ++i) {
        a[i] = bfloat16(i + 1);
        b[i] = bfloat16(3 - i % 7);
      }
      const V left = n == kElements ? load_pairs(a.data()) : load_pairs(a.data(), n);
      const V right = load_pairs(b.data(), n);
      const Lanes<V> lanes = lanes_of(dot_pairs(left, right, V(0.5f)));
      for (int i = 0; i < V::size; ++i) {
        float expected = 0.5f;
        for (int k = 2 * i; k < std::min(2 * i + 2, n); ++k) {
          expected += to_float(a[k]) * to_float(b[k]);
        }
        CHECK_SAME(lanes[i], expected);
      }
    }
    for (int n = 0; n <= V::size; ++n) {
      Walled<M> low(n), high(n);
      for (int i = 0; i < n; ++i) {
        low[i] = bfloat16(i + 1);
        high[i] = bfloat16(-i - 9);
      }
      for (const M* second : {static_cast<const M*>(high.data()), static_cast<const M*>(nullptr)}) {
        const Lanes<V> lanes = lanes_of(interleave_pairs(low.data(), second, n));
        for (int i = 0; i < V::size; ++i) {
          uint32_t bits;
          std::memcpy(&bits, &lanes[i], sizeof bits);
          CHECK((bits & 0xffff) == (i < n ? low[i].bits : 0u));
          CHECK((bits >> 16) == (i < n && second ? high[i].bits : 0u));
        }
      }
    }
  } else {
    CHECK(!kHasDotPairs);
  }
}

FASTACT_TEST(pairs_of_bfloat16) { check_pairs<Vec<float>, BFloat16>(); }

int main(int count, char** names) { return fastact_test::run_tests(count - 1, names + 1); }
