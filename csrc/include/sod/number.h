// Widening 16-bit logits to float and rounding float gradients back, on bit patterns so that loops vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "sod/portable.h"

namespace sod {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

SOD_INLINE float float_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

SOD_INLINE std::uint32_t bits_from_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

SOD_INLINE float float_from_bfloat16(std::uint16_t half) {
  return float_from_bits(static_cast<std::uint32_t>(half) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
SOD_INLINE std::uint16_t bfloat16_from_float(float value) {
  const std::uint32_t bits = bits_from_float(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<std::uint16_t>(value == value ? rounded : 0x7fc0u);
}

// The exponent is 5 bits wide with bias 15, so the shifted pattern is too small by 2^112; the product is
// exact for subnormals too.
SOD_INLINE float float_from_float16(std::uint16_t half) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fffu) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t finite = bits_from_float(float_from_bits(magnitude) * 5.192296858534828e33f);
  const std::uint32_t special = magnitude | 0x7f800000u;
  return float_from_bits((magnitude >= 0x0f800000u ? special : finite) | sign);
}

// Rounds to nearest, ties to even, subnormals and overflow included; NaN stays NaN.
SOD_INLINE std::uint16_t float16_from_float(float value) {
  const std::uint32_t bits = bits_from_float(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 1/2 puts the last bit of a float16 subnormal, 2^-24, at the last bit of the float.
  const std::uint32_t subnormal = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  std::uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return static_cast<std::uint16_t>(half | sign);
}

}  // namespace sod
