// As much of the CUDA runtime and language as csrc/cuda uses, for a C++ compiler: see docs/kernels.md.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Of the thread that runs.
inline uint3 threadIdx{}, blockIdx{};

// ---- runtime: everything happens at once

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

inline cudaError_t last_cuda_error = cudaSuccess;

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = last_cuda_error;
  last_cuda_error = cudaSuccess;
  return error;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t size, cudaStream_t) {
  std::memset(memory, value, size);
  return cudaSuccess;
}

// ---- memory

inline void check_alignment(const uint4* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(uint4) != 0) {
    sod::cuda_on_cpu::fail("reads or writes 16 bytes at an address that 16 does not divide");
  }
}

inline uint4 __ldcs(const uint4* address) {
  check_alignment(address);
  return *address;
}

inline void __stcs(uint4* address, uint4 value) {
  check_alignment(address);
  *address = value;
}

inline long long atomicMax(long long* address, long long value) {
  const long long old = *address;
  if (value > old) *address = value;
  return old;
}

// ---- threads that wait for each other

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  sod::cuda_on_cpu::meet(sod::cuda_on_cpu::Group::kBlock, {"__syncthreads", file, line}, 0, -1);
}

inline int __syncthreads_or(int value, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const std::uint64_t any = value != 0;
  return static_cast<int>(
      sod::cuda_on_cpu::meet(sod::cuda_on_cpu::Group::kBlock, {"__syncthreads_or", file, line}, any, -1));
}

// Of whole warps: no kernel here has a use for parts.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int offset, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  if (mask != ~0u) sod::cuda_on_cpu::fail("shuffles a part of its warp");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const int source = static_cast<int>(threadIdx.x % 32) ^ offset;
  bits =
      sod::cuda_on_cpu::meet(sod::cuda_on_cpu::Group::kWarp, {"__shfl_xor_sync", file, line}, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
