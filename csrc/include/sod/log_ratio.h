// log of a ratio that may lie very near 1, in float, made to vectorise.
#pragma once

#include <cstdint>

#include "sod/number.h"
#include "sod/portable.h"

namespace sod {

// log(ratio), given also `excess` = ratio - 1 computed without cancellation by the caller.
//
// ratio = 2^k * r with r in [2/3, 4/3), and log(1 + g) = g - g^2/2 + g^3 * P(g) for g = r - 1, error 3.8e-8
// relative. For k = 0 the caller's excess is g, which keeps full relative accuracy around ratio = 1. A ratio
// of 0 counts as the smallest normal number, so that 0 * log(0) is 0; only ratios below 1e-30 feel it. NaN
// stays NaN.
SOD_INLINE float log_of_ratio(float ratio, float excess) {
  constexpr float kSmallest = 1.17549435e-38f;
  constexpr float kLn2 = 0.693147181f;
  // The bits of 2/3: subtracting them makes the exponent field count from there.
  constexpr std::uint32_t kTwoThirds = 0x3f2aaaabu;
  const std::uint32_t bits = bits_from_float(ratio + kSmallest);
  const std::int32_t k = static_cast<std::int32_t>(bits - kTwoThirds) >> 23;
  const float reduced = float_from_bits(bits - (static_cast<std::uint32_t>(k) << 23)) - 1.0f;
  // Selected by bits: from a conditional the compiler makes two copies of the polynomial.
  const std::uint32_t is_near = 0u - static_cast<std::uint32_t>(k == 0);
  const float g =
      float_from_bits((bits_from_float(excess) & is_near) | (bits_from_float(reduced) & ~is_near));
  float p = 0.138202414f;
  p = p * g - 0.151221856f;
  p = p * g + 0.140423089f;
  p = p * g - 0.164723262f;
  p = p * g + 0.200079203f;
  p = p * g - 0.250042379f;
  p = p * g + 0.333332658f;
  const float log_reduced = g + (g * g) * (p * g - 0.5f);
  const float value = static_cast<float>(k) * kLn2 + log_reduced;
  return ratio == ratio ? value : ratio;
}

}  // namespace sod
