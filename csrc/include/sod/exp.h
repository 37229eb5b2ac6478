// exp(x) in double for log-probabilities, made to vectorise; within 2 units of the last place.
//
// exp(x) = 2^n * exp(r) with n = round(x / log 2) and |r| <= log(2) / 2, where the Taylor series to r^13
// leaves 4e-18. Below -708 the result is exactly 0, above 709 it stops growing; NaN stays NaN.
//
// Must be compiled without -fassociative-math, like exp2.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "sod/portable.h"

namespace sod {

SOD_INLINE double exp_of(double x) {
  constexpr double kLowest = -708.0, kHighest = 709.0;
  // log 2 in two parts, the first of which times n is exact.
  constexpr double kLog2High = 6.93147180369123816490e-01, kLog2Low = 1.90821492927058770002e-10;
  constexpr double kInverseLog2 = 1.4426950408889634;
  // Adding 1.5 * 2^52 leaves the rounded integer in the low bits; 1023 more makes them the biased exponent.
  constexpr double kRound = 6755399441055744.0 + 1023.0;
  double bounded = x < kLowest ? kLowest : x;
  bounded = bounded > kHighest ? kHighest : bounded;
  const double shifted = bounded * kInverseLog2 + kRound;
  const double n = shifted - kRound;
  const double r = bounded - n * kLog2High - n * kLog2Low;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  std::uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return x < kLowest ? 0.0 : p * power;
}

}  // namespace sod
