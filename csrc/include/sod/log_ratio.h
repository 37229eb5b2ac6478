// log of a ratio that may lie very near 1, in float, made to vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "sod/exp2.h"
#include "sod/portable.h"

namespace sod {

// log(ratio), given also `excess` = ratio - 1 computed without cancellation by the caller.
//
// ratio = 2^k * r with r in [2/3, 4/3), and log(1 + g) = g - g^2/2 + g^3 * P(g) for g = r - 1, error 3.8e-8
// relative. For k = 0 the caller's excess is g, which keeps full relative accuracy around ratio = 1. A ratio of 0
// counts as the smallest normal number, so that 0 * log(0) is 0. NaN stays NaN.
SOD_INLINE float log_of_ratio(float ratio, float excess) {
  constexpr float kSmallest = 1.17549435e-38f;
  constexpr float kLn2 = 0.693147181f;
  // The bits of 2/3: subtracting them makes the exponent field count from there.
  constexpr std::uint32_t kTwoThirds = 0x3f2aaaabu;
  const float x = at_least(ratio, kSmallest);
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::int32_t k = static_cast<std::int32_t>(bits - kTwoThirds) >> 23;
  const std::uint32_t reduced_bits = bits - (static_cast<std::uint32_t>(k) << 23);
  float reduced;
  std::memcpy(&reduced, &reduced_bits, sizeof reduced);
  const float g = k == 0 ? excess : reduced - 1.0f;
  float p = 0.138202414f;
  p = p * g - 0.151221856f;
  p = p * g + 0.140423089f;
  p = p * g - 0.164723262f;
  p = p * g + 0.200079203f;
  p = p * g - 0.250042379f;
  p = p * g + 0.333332658f;
  const float square = g * g;
  const float log_reduced = g + square * (p * g - 0.5f);
  const float value = static_cast<float>(k) * kLn2 + log_reduced;
  return x == x ? value : x;
}

}  // namespace sod
