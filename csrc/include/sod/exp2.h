// exp(difference / temperature) for differences that are not positive, in float, made to vectorise.
//
// 2^x = 2^n * 2^f with n = round(x) and |f| <= 1/2. The polynomial for 2^f was fitted to the smallest largest
// relative error with its constant term held at 1, so 2^0 is exactly 1 and equal rows differ by exactly 0.
// Its error is 9.3e-8; a degree more did not make any divergence more accurate. Results below 2^-126.5 are
// exactly 0; NaN stays NaN.
//
// Must be compiled without -fassociative-math: n comes from adding and subtracting a large constant.
#pragma once

#include "sod/number.h"
#include "sod/portable.h"
#if defined(__CUDACC__)
#include "cuda/device.cuh"
#endif

namespace sod {

constexpr double kLog2E = 1.4426950408889634;

// How differences of logits become powers of two: exp(d / temperature) = 2^(d * log2_scale).
struct Exponent {
  float log2_scale;
  // The difference whose power of two is 2^-127: at and below it the result is 0.
  float lowest;
};

SOD_INLINE Exponent make_exponent(double temperature) {
  return {static_cast<float>(kLog2E / temperature), static_cast<float>(-127.0 / kLog2E * temperature)};
}

// max(x, bound), where a NaN in x survives.
SOD_INLINE float at_least(float x, float bound) {
  return x < bound ? bound : x;
}

SOD_INLINE float exp_of(float difference, Exponent exponent) {
#if defined(__CUDA_ARCH__)
  return cuda::exp2_approx(difference * exponent.log2_scale);
#else
  const float x = at_least(difference, exponent.lowest);
  // Adding 1.5 * 2^23 leaves the rounded integer in the low bits; 127 more makes them the biased exponent.
  constexpr float kRound = 12582912.0f + 127.0f;
  const float shifted = x * exponent.log2_scale + kRound;
  const float f = x * exponent.log2_scale - (shifted - kRound);
  float p = 0.00132695551f;
  p = p * f + 0.0096712932f;
  p = p * f + 0.0555071086f;
  p = p * f + 0.240222469f;
  p = p * f + 0.693147004f;
  p = p * f + 1.0f;
  return p * float_from_bits(bits_from_float(shifted) << 23);
#endif
}

}  // namespace sod
