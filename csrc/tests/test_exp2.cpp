#include <initializer_list>

#include "check.h"
#include "sod/exp2.h"
#include "sod/log_ratio.h"

int main() {
  const sod::Exponent unit = sod::make_exponent(1.0);
  const float infinity = __builtin_inff();
  const float nan = __builtin_nanf("");

  // Exact points: equal rows must have a divergence of exactly 0.
  EXPECT(sod::exp_of(0.0f, unit) == 1.0f);
  EXPECT(sod::exp_of(-infinity, unit) == 0.0f);
  EXPECT(sod::exp_of(-200.0f, unit) == 0.0f);
  EXPECT(std::isnan(sod::exp_of(nan, unit)));
  const sod::Exponent binary = sod::make_exponent(sod::kLog2E);
  for (int n = 0; n < 126; ++n) EXPECT(sod::exp_of(-static_cast<float>(n), binary) == std::ldexp(1.0f, -n));

  // Accuracy, over the whole range of results; the product with 1/ln 2 costs the larger differences some.
  for (const double temperature : {0.5, 1.0, 3.0}) {
    const sod::Exponent exponent = sod::make_exponent(temperature);
    for (double x = 0; x > -80 * temperature; x -= 0.00137) {
      const float difference = static_cast<float>(x);
      const double wanted = std::exp(static_cast<double>(difference) / temperature);
      EXPECT_CLOSE(static_cast<double>(sod::exp_of(difference, exponent)), wanted,
                   2.0e-7 + 1.2e-7 * std::fabs(x) / temperature);
    }
  }

  // log of a ratio: relative accuracy right down to a ratio of 1.
  EXPECT(sod::log_of_ratio(1.0f, 0.0f) == 0.0f);
  EXPECT(0.0f * sod::log_of_ratio(0.0f, -1.0f) == 0.0f);
  EXPECT(std::isnan(sod::log_of_ratio(nan, nan)));
  for (double excess = 1e-12; excess < 0.3; excess *= 1.07) {
    for (const double sign : {-1.0, 1.0}) {
      const float e = static_cast<float>(sign * excess);
      EXPECT_CLOSE(static_cast<double>(sod::log_of_ratio(1.0f + e, e)), std::log1p(static_cast<double>(e)),
                   3e-7);
    }
  }
  for (double ratio = 1e-30; ratio < 1e30; ratio *= 1.09) {
    const float r = static_cast<float>(ratio);
    const double wanted = std::log(static_cast<double>(r));
    const double error = std::fabs(static_cast<double>(sod::log_of_ratio(r, r - 1.0f)) - wanted);
    EXPECT(error <= 1.5e-7 * std::fmax(1.0, std::fabs(wanted)));
  }
  return sod::test::finish();
}
