#include <cstdint>

#include "check.h"
#include "sod/number.h"

namespace {

// The nearest of the two 16-bit neighbours by exhaustive comparison, ties to the even pattern.
template <class Widen>
void check_rounding(std::uint16_t lower, Widen widen, std::uint16_t (*round)(float)) {
  const std::uint16_t upper = static_cast<std::uint16_t>(lower + 1);
  const double a = static_cast<double>(widen(lower));
  const double b = static_cast<double>(widen(upper));
  if (!std::isfinite(a) || !std::isfinite(b)) return;
  EXPECT(round(static_cast<float>(a)) == lower);
  const float middle = static_cast<float>(a + (b - a) / 2);
  EXPECT(round(middle) == (lower % 2 == 0 ? lower : upper));
  EXPECT(round(static_cast<float>(a + (b - a) * 0.25)) == lower);
  EXPECT(round(static_cast<float>(a + (b - a) * 0.75)) == upper);
}

std::uint16_t round_bfloat16(float x) {
  return sod::bfloat16_from_float(x);
}
std::uint16_t round_float16(float x) {
  return sod::float16_from_float(x);
}

// Sign, exponent and fraction taken apart by arithmetic.
double float16_by_definition(std::uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int fraction = half & 1023;
  const double sign = (half & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return fraction != 0 ? __builtin_nan("") : sign * __builtin_inf();
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

}  // namespace

int main() {
  for (std::uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const std::uint16_t half = static_cast<std::uint16_t>(pattern);
    EXPECT_CLOSE(static_cast<double>(sod::float_from_float16(half)), float16_by_definition(half), 0.0);
    if ((pattern & 0x7fffu) < 0x7c00u) check_rounding(half, sod::float_from_float16, round_float16);
    // The steps between bfloat16 subnormals lie below what a float can halve.
    const std::uint32_t magnitude = pattern & 0x7fffu;
    if (magnitude >= 0x0100u && magnitude < 0x7f80u) {
      check_rounding(half, sod::float_from_bfloat16, round_bfloat16);
    }
  }
  EXPECT(sod::float16_from_float(65519.0f) == 0x7bff);
  EXPECT(sod::float16_from_float(65520.0f) == 0x7c00);
  EXPECT(sod::float16_from_float(-1e30f) == 0xfc00);
  EXPECT(sod::float16_from_float(__builtin_inff()) == 0x7c00);
  EXPECT(sod::float16_from_float(-0.0f) == 0x8000);
  EXPECT(std::isnan(sod::float_from_float16(sod::float16_from_float(__builtin_nanf("")))));
  EXPECT(std::isnan(sod::float_from_bfloat16(sod::bfloat16_from_float(__builtin_nanf("")))));
  EXPECT(sod::bfloat16_from_float(3.4e38f) == 0x7f80);
  return sod::test::finish();
}
