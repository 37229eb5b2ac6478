// What only nvcc understands, in one place; csrc/tests/cuda_on_cpu/cuda/device.cuh has the same for a CPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sod::cuda {

constexpr int kThreads = 256;

// Starts blocks of kThreads threads; cudaGetLastError says whether it did.
template <auto kernel, class... Arguments>
void launch_blocks(std::int64_t blocks, cudaStream_t stream, const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments...);
}

// The block's only T in shared memory; not initialised.
template <class T>
__device__ __forceinline__ T& shared_memory() {
  __shared__ T memory;
  return memory;
}

// 2^x with a relative error of 2^-22; what would be subnormal is 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

}  // namespace sod::cuda
