// What only nvcc understands, in one place; csrc/tests/cuda_on_cpu/cuda/device.cuh has the same for a CPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sod::cuda {

constexpr int kThreads = 256;

// Whether the code is compiled for cards whose blocks form clusters. On older ones only launch_blocks works.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
#else
constexpr bool kHasClusters = false;
#endif

// Starts blocks of kThreads threads; cudaGetLastError says whether it did.
template <auto kernel, class... Arguments>
void launch_blocks(std::int64_t blocks, cudaStream_t stream, const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments...);
}

// How much dynamic shared memory a block of this kernel may have on the current device; 0 where it was
// compiled for cards without clusters, or does not run at all.
template <auto kernel>
std::int64_t cluster_block_bytes() {
  cudaFuncAttributes attributes{};
  int device = 0, most = 0;
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess || attributes.ptxVersion < 90 ||
      cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    return 0;
  }
  return most - static_cast<std::int64_t>(attributes.sharedSizeBytes);
}

// Starts clusters of `size` blocks of kThreads threads, each with that much dynamic shared memory.
template <auto kernel, class... Arguments>
void launch_clusters(std::int64_t clusters, int size, std::int64_t dynamic_bytes, cudaStream_t stream,
                     const Arguments&... arguments) {
  (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(dynamic_bytes));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(size);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(clusters * size);
  config.blockDim = kThreads;
  config.dynamicSmemBytes = static_cast<std::size_t>(dynamic_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  (void)cudaLaunchKernelEx(&config, kernel, arguments...);
}

// The block's only T in shared memory; not initialised.
template <class T>
__device__ __forceinline__ T& shared_memory() {
  __shared__ T memory;
  return memory;
}

// What the launch asked for, from a multiple of 16 bytes on; not initialised.
__device__ __forceinline__ void* dynamic_shared_memory() {
  extern __shared__ uint4 dynamic_memory[];
  return dynamic_memory;
}

// ---- clusters: every thread of every block arrives, then waits; what was written before is seen after

__device__ __forceinline__ unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

// What the block of that rank has where `mine` lies in this block's shared memory. That block must not end
// before.
__device__ __forceinline__ double read_peer(const double& mine, unsigned rank) {
  std::uint32_t address;
  double value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(&mine)), "r"(rank));
  asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(value) : "r"(address) : "memory");
  return value;
}

// ---- bulk copies into the block's shared memory. One thread initialises a barrier for each group of them,
// fences, announces how many bytes will come, and starts them. A barrier opens once, when all have come.

using CopyBarrier = std::uint64_t;

__device__ __forceinline__ void init_copy_barrier(CopyBarrier& barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barrier)) : "memory");
}

// Shows initialised barriers to the copies.
__device__ __forceinline__ void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void expect_copies(CopyBarrier& barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(bytes)
               : "memory");
}

// 16 divides both addresses and the size.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, std::uint32_t bytes,
                                          CopyBarrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(&barrier))
      : "memory");
}

__device__ __forceinline__ void wait_for_copies(CopyBarrier& barrier) {
  std::uint32_t is_open = 0;
  while (is_open == 0) {
    asm volatile(
        "{\n"
        ".reg .pred open;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 open, [%1], 0;\n"
        "selp.u32 %0, 1, 0, open;\n"
        "}"
        : "=r"(is_open)
        : "r"(shared_address(&barrier))
        : "memory");
  }
}

// 2^x with a relative error of 2^-22; what would be subnormal is 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

}  // namespace sod::cuda
