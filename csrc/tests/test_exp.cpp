#include "sod/exp.h"

#include <limits>

#include "check.h"

int main() {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT(sod::exp_of(0.0) == 1.0);
  EXPECT(sod::exp_of(-infinity) == 0.0);
  EXPECT(sod::exp_of(-1000.0) == 0.0);
  EXPECT(std::isnan(sod::exp_of(std::numeric_limits<double>::quiet_NaN())));
  // Beyond what a double holds it is large, as a check of the mass wants it.
  EXPECT(sod::exp_of(infinity) > 1e307);
  constexpr double kTwoUnits = 2 * std::numeric_limits<double>::epsilon();
  for (double x = -707.9; x < 3.0; x += 0.00137) EXPECT_CLOSE(sod::exp_of(x), std::exp(x), kTwoUnits);
  for (double x = 1e-18; x < 0.3; x *= 1.07) EXPECT_CLOSE(sod::exp_of(-x), std::exp(-x), kTwoUnits);
  return sod::test::finish();
}
