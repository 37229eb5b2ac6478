#pragma once

#include "cuda_runtime_api.h"
#include "sod/number.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : bits(sod::bfloat16_from_float(value)) {}
  explicit operator float() const { return sod::float_from_bfloat16(bits); }
};
