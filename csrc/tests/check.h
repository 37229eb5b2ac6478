// Assertions for the unit tests: every failure is printed, and the process ends with their number.
#pragma once

#include <cmath>
#include <cstdio>

namespace sod::test {

inline int failures = 0;

inline void expect(bool holds, const char* what, const char* file, int line) {
  if (holds) return;
  ++failures;
  std::printf("%s:%d: %s\n", file, line, what);
}

// Relative to the larger of |wanted| and 1e-30; equal infinities and two NaN are close.
inline void expect_close(double got, double wanted, double tolerance, const char* what, const char* file,
                         int line) {
  const bool is_same = got == wanted || (std::isnan(got) && std::isnan(wanted));
  const double error = std::fabs(got - wanted) / std::fmax(std::fabs(wanted), 1e-30);
  if (is_same || error <= tolerance) return;
  ++failures;
  std::printf("%s:%d: %s: got %.17g, wanted %.17g, relative error %.3g > %.3g\n", file, line, what, got,
              wanted, error, tolerance);
}

inline int finish() {
  if (failures == 0) std::puts("ok");
  return failures == 0 ? 0 : 1;
}

}  // namespace sod::test

#define EXPECT(condition) ::sod::test::expect((condition), #condition, __FILE__, __LINE__)
#define EXPECT_CLOSE(got, wanted, tolerance) \
  ::sod::test::expect_close((got), (wanted), (tolerance), #got, __FILE__, __LINE__)
