// The blocks of a cluster as a team that keeps the rows of one token in its shared memory, a part in each
// block.
#pragma once

#include <cstdint>

#include "cuda/cluster_plan.h"
#include "cuda/row_gradient.cuh"
#include "cuda/rows.cuh"

namespace sod::cuda {

// A part is fetched in so many pieces, each with a barrier of its own: one is walked over while the next ones
// arrive.
constexpr int kPieces = 4;
// That a team reduces at once.
constexpr int kMostValues = 7;

// What a block has in shared memory besides its part.
struct ClusterMemory {
  Shared shared;
  Coefficients coefficients;
  double slots[2][kMostValues];
  double totals[kMostValues];
  CopyBarrier barriers[kPieces];
};

// A block's part of a row, on the chip.
template <class T>
struct SharedRow {
  const T* data;

  __device__ __forceinline__ float at(std::int64_t i) const { return to_float(data[i]); }
  template <int width>
  __device__ __forceinline__ Pack<T, width> pack(std::int64_t start) const {
    Pack<T, width> pack;
    if constexpr (width * sizeof(T) == kPackBytes) {
      const uint4 bits = *reinterpret_cast<const uint4*>(data + start);
      __builtin_memcpy(&pack, &bits, sizeof bits);
    } else {
      pack = *reinterpret_cast<const Pack<T, width>*>(data + start);
    }
    return pack;
  }
};

// Entries of a piece: whole turns of the block's threads, so that a thread gets the same packs as without
// pieces.
template <class T>
__device__ __forceinline__ std::int64_t piece_of(const Part& part) {
  constexpr std::int64_t turn = kThreads * kPackWidth<T>;
  return divide_up(divide_up(part.capacity, kPieces), turn) * turn;
}

// By one thread. Copies whole packs of a block's part, piece after piece, the rows of a piece under one
// barrier.
template <int num_rows, class T>
__device__ void start_copies(const T* const (&from)[num_rows], T* const (&to)[num_rows], const Part& part,
                             CopyBarrier (&barriers)[kPieces]) {
  for (CopyBarrier& barrier : barriers) init_copy_barrier(barrier);
  fence_async();
  const std::int64_t whole = part.size / kPackWidth<T> * kPackWidth<T>, piece = piece_of<T>(part);
  for (int i = 0; i < kPieces; ++i) {
    const std::int64_t start = i * piece, left = start < whole ? whole - start : 0;
    const std::uint32_t bytes = static_cast<std::uint32_t>((left < piece ? left : piece) * sizeof(T));
    expect_copies(barriers[i], num_rows * bytes);
    if (bytes == 0) continue;
#pragma unroll
    for (int row = 0; row < num_rows; ++row)
      bulk_copy(to[row] + start, from[row] + start, bytes, barriers[i]);
  }
}

// Has the block's part of the rows brought into shared memory, where the team waits for it. What fills no
// pack is there at once.
template <bool has_reference, class T>
__device__ RowTriple<SharedRow<T>> fetch_rows(const Problem& problem, std::int64_t row, const Part& part,
                                              CopyBarrier (&barriers)[kPieces]) {
  constexpr int num_rows = has_reference ? 3 : 2;
  const RowTriple<DeviceRow<T>> rows = rows_of<T>(problem, row);
  T* const memory = static_cast<T*>(dynamic_shared_memory());
  const T* from[num_rows] = {rows.student.data + part.start, rows.teacher.data + part.start};
  T* to[num_rows] = {memory, memory + part.capacity};
  if constexpr (has_reference) {
    from[2] = rows.reference.data + part.start;
    to[2] = memory + 2 * part.capacity;
  }
  if (threadIdx.x == 0) start_copies(from, to, part, barriers);
  const std::int64_t last = part.size / kPackWidth<T> * kPackWidth<T> + threadIdx.x;
  if (last < part.size) {
#pragma unroll
    for (int i = 0; i < num_rows; ++i) to[i][last] = from[i][last];
  }
  // Before a thread waits for a barrier it must have been initialised.
  __syncthreads();
  RowTriple<SharedRow<T>> parts{{to[0]}, {to[1]}, {nullptr}};
  if constexpr (has_reference) parts.reference = {to[2]};
  return parts;
}

template <class T>
class ClusterTeam {
 public:
  __device__ ClusterTeam(const Part& part, ClusterMemory& memory)
      : size_(part.size), piece_(piece_of<T>(part)), memory_(memory) {}

  // Waits for what has not arrived yet.
  template <class Visit>
  __device__ __forceinline__ void for_each_pack(Visit visit) const {
#pragma unroll 1
    for (int i = 0; i < kPieces; ++i) {
      const std::int64_t first = i * piece_, left = size_ - first;
      if (left <= 0) break;
      wait_for_copies(memory_.barriers[i]);
      cuda::for_each_pack<kPackWidth<T>>(
          left < piece_ ? left : piece_,
          [&](std::int64_t start, auto entries) { visit(first + start, entries); });
    }
  }

  template <int n>
  __device__ __forceinline__ void reduce_max(float (&values)[n]) {
    double all[n];
#pragma unroll
    for (int i = 0; i < n; ++i) all[i] = static_cast<double>(cuda::reduce_max(values[i], memory_.shared));
    exchange(all, [](double x, double y) { return x > y ? x : y; });
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = static_cast<float>(all[i]);
  }

  template <int n>
  __device__ __forceinline__ void reduce_sum(double (&values)[n]) {
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = cuda::reduce_sum(values[i], memory_.shared);
    exchange(values, [](double x, double y) { return x + y; });
  }

 private:
  // Combines what the blocks have, in the order of their ranks, so that all get the same bits. Two exchanges
  // later every block has read this slot: it has come to the barrier in between.
  template <int n, class Combine>
  __device__ __forceinline__ void exchange(double (&values)[n], Combine combine) {
    static_assert(n <= kMostValues);
    double (&slot)[kMostValues] = memory_.slots[num_exchanges_++ % 2];
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < n; ++i) slot[i] = values[i];
    }
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x < n) {
      double total = read_peer(slot[threadIdx.x], 0);
      for (unsigned rank = 1; rank < cluster_size(); ++rank) {
        total = combine(total, read_peer(slot[threadIdx.x], rank));
      }
      memory_.totals[threadIdx.x] = total;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = memory_.totals[i];
  }

  std::int64_t size_;
  std::int64_t piece_;  // entries
  ClusterMemory& memory_;
  unsigned num_exchanges_ = 0;
};

}  // namespace sod::cuda
