#pragma once

#include "cuda_runtime_api.h"
#include "sod/number.h"

struct __half {
  std::uint16_t bits;
  __half() = default;
  explicit __half(float value) : bits(sod::float16_from_float(value)) {}
  explicit operator float() const { return sod::float_from_float16(bits); }
};
