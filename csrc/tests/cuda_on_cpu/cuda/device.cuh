// csrc/cuda/device.cuh for a CPU; the path of includes puts this one first.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "cuda_runtime_api.h"
#include "sod/number.h"

namespace sod::cuda {

constexpr int kThreads = 256;

template <auto kernel, class... Arguments>
void launch_blocks(std::int64_t blocks, cudaStream_t, const Arguments&... arguments) {
  if (blocks <= 0 || blocks > std::numeric_limits<std::int32_t>::max()) {
    last_cuda_error = cudaErrorInvalidConfiguration;
    return;
  }
  // This function's own name holds that of the kernel, which has no other way to tell it.
  const std::string name = __PRETTY_FUNCTION__;
  const std::size_t first = name.find("kernel = ") + 9;
  cuda_on_cpu::run_grid(name.substr(first, name.find(';', first) - first), static_cast<unsigned>(blocks),
                        kThreads, [&] { kernel(arguments...); });
}

template <class T>
T& shared_memory() {
  static const char key = 0;
  return *static_cast<T*>(cuda_on_cpu::shared_memory(&key, sizeof(T)));
}

// As far off as the instruction may be, in either direction.
inline float exp2_approx(float x) {
  const float power = std::exp2(x);
  if (power < std::numeric_limits<float>::min()) return 0.0f;
  const bool is_odd = bits_from_float(x) & 1u;
  return x == 0.0f ? power : power * (is_odd ? 1.0f + 0x1p-22f : 1.0f - 0x1p-22f);
}

}  // namespace sod::cuda
