// csrc/cuda/device.cuh for a CPU; the path of includes puts this one first.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "cluster.h"
#include "cuda_runtime_api.h"
#include "sod/number.h"

namespace sod::cuda {

constexpr int kThreads = 256;
constexpr bool kHasClusters = true;

template <auto kernel, class... Arguments>
void launch_grid(std::int64_t blocks, unsigned cluster_size, std::int64_t dynamic_bytes,
                 const Arguments&... arguments) {
  if (blocks <= 0 || blocks > std::numeric_limits<std::int32_t>::max()) {
    last_cuda_error = cudaErrorInvalidConfiguration;
    return;
  }
  // This function's own name holds that of the kernel, which has no other way to tell it.
  const std::string name = __PRETTY_FUNCTION__;
  const std::size_t first = name.find("kernel = ") + 9;
  const cuda_on_cpu::Grid grid{name.substr(first, name.find(';', first) - first),
                               static_cast<unsigned>(blocks), kThreads, cluster_size,
                               static_cast<std::size_t>(dynamic_bytes)};
  cuda_on_cpu::run_grid(grid, [&] { kernel(arguments...); });
}

template <auto kernel, class... Arguments>
void launch_blocks(std::int64_t blocks, cudaStream_t, const Arguments&... arguments) {
  launch_grid<kernel>(blocks, 1, 0, arguments...);
}

template <auto kernel>
std::int64_t cluster_block_bytes() {
  return cuda_on_cpu::device.cluster_block_bytes;
}

template <auto kernel, class... Arguments>
void launch_clusters(std::int64_t clusters, int size, std::int64_t dynamic_bytes, cudaStream_t,
                     const Arguments&... arguments) {
  if (dynamic_bytes > cuda_on_cpu::device.cluster_block_bytes) {
    last_cuda_error = cudaErrorInvalidConfiguration;
    return;
  }
  cuda_on_cpu::device.clusters.push_back(size);
  launch_grid<kernel>(clusters * size, static_cast<unsigned>(size), dynamic_bytes, arguments...);
}

template <class T>
T& shared_memory() {
  static const char key = 0;
  return *static_cast<T*>(cuda_on_cpu::shared_memory(&key, sizeof(T)));
}

inline void* dynamic_shared_memory() {
  return cuda_on_cpu::dynamic_memory();
}

// ---- clusters and bulk copies

inline unsigned cluster_size() {
  return cuda_on_cpu::cluster_size();
}

inline unsigned cluster_rank() {
  return cuda_on_cpu::cluster_rank();
}

inline void cluster_arrive() {
  cuda_on_cpu::arrive_in_cluster();
}

inline void cluster_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_on_cpu::wait_in_cluster({"cluster_wait", file, line});
}

inline double read_peer(const double& mine, unsigned rank) {
  return *static_cast<const double*>(cuda_on_cpu::peer_address(&mine, sizeof mine, rank));
}

using CopyBarrier = std::uint64_t;

inline void init_copy_barrier(CopyBarrier& barrier) {
  cuda_on_cpu::init_copy_barrier(&barrier);
}

inline void fence_async() {
  cuda_on_cpu::fence_async();
}

inline void expect_copies(CopyBarrier& barrier, std::uint32_t bytes) {
  cuda_on_cpu::expect_copies(&barrier, bytes);
}

inline void bulk_copy(void* shared, const void* global, std::uint32_t bytes, CopyBarrier& barrier) {
  cuda_on_cpu::bulk_copy(shared, global, bytes, &barrier);
}

inline void wait_for_copies(CopyBarrier& barrier, const char* file = __builtin_FILE(),
                            int line = __builtin_LINE()) {
  cuda_on_cpu::wait_for_copies(&barrier, {"wait_for_copies", file, line});
}

// As far off as the instruction may be, in either direction.
inline float exp2_approx(float x) {
  const float power = std::exp2(x);
  if (power < std::numeric_limits<float>::min()) return 0.0f;
  const bool is_odd = bits_from_float(x) & 1u;
  return x == 0.0f ? power : power * (is_odd ? 1.0f + 0x1p-22f : 1.0f - 0x1p-22f);
}

}  // namespace sod::cuda
