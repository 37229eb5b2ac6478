// One block of threads walks over one row: loads, and reductions over the block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/device.cuh"
#include "sod/number.h"
#include "sod/rows.h"
#include "sod/softmax_state.h"
#include "sod/step_kl.h"

namespace sod::cuda {

// Leaves 80 registers to a thread, which no kernel outgrows, and 24 warps to a processor.
constexpr int kBlocksPerProcessor = 3;
constexpr int kWarps = kThreads / 32;

template <class T>
__device__ __forceinline__ float to_float(T x) {
  return static_cast<float>(x);
}

template <class T>
__device__ __forceinline__ T from_float(float x) {
  return static_cast<T>(x);
}

// The entries that one thread loads at once: 128 bits, or one entry where rows are not aligned for that.
template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T values[width];
};

template <class T>
constexpr int kPackWidth = 16 / sizeof(T);

// Logits are read once or twice, far apart: past L1.
template <class T, int width>
__device__ __forceinline__ Pack<T, width> load(const T* address) {
  if constexpr (width * sizeof(T) == 16) {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(address));
    Pack<T, width> pack;
    __builtin_memcpy(&pack, &bits, sizeof bits);
    return pack;
  } else {
    return *reinterpret_cast<const Pack<T, width>*>(address);
  }
}

template <class T, int width>
__device__ __forceinline__ void store(T* address, const Pack<T, width>& pack) {
  if constexpr (width * sizeof(T) == 16) {
    uint4 bits;
    __builtin_memcpy(&bits, &pack, sizeof bits);
    __stcs(reinterpret_cast<uint4*>(address), bits);
  } else {
    *reinterpret_cast<Pack<T, width>*>(address) = pack;
  }
}

// A row in device memory.
template <class T>
struct DeviceRow {
  const T* data;

  __device__ __forceinline__ float at(std::int64_t i) const { return to_float(data[i]); }
  template <int width>
  __device__ __forceinline__ Pack<T, width> pack(std::int64_t start) const {
    return load<T, width>(data + start);
  }
};

// The rows of one token. What a walk has no use for may be null.
template <class Row>
struct RowTriple {
  Row student;
  Row teacher;
  Row reference;
};

template <class T>
__device__ __forceinline__ RowTriple<DeviceRow<T>> rows_of(const Problem& problem, std::int64_t row) {
  return {{row_of<T>(problem.student, problem.rows, row)},
          {row_of<T>(problem.teacher, problem.rows, row)},
          {row_of<T>(problem.reference, problem.rows, row)}};
}

// Whether every row can be read, or written, in packs; so it is where there are none.
template <class T>
inline bool is_aligned(const Logits& logits) {
  const bool is_base_aligned = reinterpret_cast<std::uintptr_t>(logits.data) % 16 == 0;
  return is_base_aligned && logits.stride_batch % kPackWidth<T> == 0 &&
         logits.stride_time % kPackWidth<T> == 0;
}

template <class T>
inline bool is_aligned(const Gradient& gradient) {
  return is_aligned<T>(Logits{gradient.data, 0, gradient.width});
}

template <class T>
inline bool is_aligned(const Problem& problem) {
  return is_aligned<T>(problem.student) && is_aligned<T>(problem.teacher) && is_aligned<T>(problem.reference);
}

// Calls launch with a null pointer of the type that `dtype` names.
template <class Launch>
inline void with_row_type(DType dtype, Launch launch) {
  switch (dtype) {
    case DType::kFloat32:
      return launch(static_cast<float*>(nullptr));
    case DType::kBFloat16:
      return launch(static_cast<__nv_bfloat16*>(nullptr));
    case DType::kFloat16:
      return launch(static_cast<__half*>(nullptr));
  }
}

template <int width>
struct Width {
  static constexpr int value = width;
};

// A bool as a type, for lambdas.
template <bool flag>
struct Flag {
  static constexpr bool value = flag;
};

template <Divergence divergence>
struct DivergenceOf {
  static constexpr Divergence value = divergence;
};

// Calls launch with what kernels of a problem are compiled for: a null pointer of the rows' type, a
// DivergenceOf, and a Flag that says whether there is a reference.
template <class Launch>
inline void with_variant(const Problem& problem, Launch launch) {
  with_row_type(problem.rows.dtype, [&](auto* type) {
    const auto with_divergence = [&](auto divergence) {
      if (problem.reference.data != nullptr) return launch(type, divergence, Flag<true>{});
      return launch(type, divergence, Flag<false>{});
    };
    switch (problem.divergence) {
      case Divergence::kReverseKL:
        return with_divergence(DivergenceOf<Divergence::kReverseKL>{});
      case Divergence::kForwardKL:
        return with_divergence(DivergenceOf<Divergence::kForwardKL>{});
      case Divergence::kJSD:
        return with_divergence(DivergenceOf<Divergence::kJSD>{});
    }
  });
}

// Calls visit(start, Width) for this thread's packs of a row: packs of `width`, then single entries for the
// rest.
template <int width, class Visit>
__device__ __forceinline__ void for_each_pack(std::int64_t size, Visit visit) {
  const std::int64_t whole = size / width * width;
  for (std::int64_t start = static_cast<std::int64_t>(threadIdx.x) * width; start < whole;
       start += static_cast<std::int64_t>(kThreads) * width) {
    visit(start, Width<width>{});
  }
  if constexpr (width > 1) {
    if (whole + threadIdx.x < size) visit(whole + threadIdx.x, Width<1>{});
  }
}

template <int width, class T>
__device__ void fill_zeros(T* out, std::int64_t size) {
  for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    Pack<T, n> zeros;
#pragma unroll
    for (int i = 0; i < n; ++i) zeros.values[i] = from_float<T>(0.0f);
    store<T, n>(out + start, zeros);
  });
}

// ---- reductions: every thread gets the result, added up in the same order every time
// ------------------------

template <class Real, class Combine>
__device__ __forceinline__ Real reduce(Real value, Combine combine, Real* shared) {
  for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(~0u, value, offset));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[0];
  for (int warp = 1; warp < kWarps; ++warp) value = combine(value, shared[warp]);
  return value;
}

union Shared {
  float floats[kWarps];
  double doubles[kWarps];
};

__device__ __forceinline__ float reduce_max(float value, Shared& shared) {
  return reduce(value, [](float x, float y) { return larger(x, y); }, shared.floats);
}

__device__ __forceinline__ double reduce_sum(double value, Shared& shared) {
  return reduce(value, [](double x, double y) { return x + y; }, shared.doubles);
}

// The threads of a block as a team that has a row of `size` entries to walk over and to reduce.
template <int width>
struct BlockTeam {
  std::int64_t size;
  Shared& shared;

  template <class Visit>
  __device__ __forceinline__ void for_each_pack(Visit visit) const {
    cuda::for_each_pack<width>(size, visit);
  }
  template <int n>
  __device__ __forceinline__ void reduce_max(float (&values)[n]) const {
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = cuda::reduce_max(values[i], shared);
  }
  template <int n>
  __device__ __forceinline__ void reduce_sum(double (&values)[n]) const {
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = cuda::reduce_sum(values[i], shared);
  }
};

// One row's log-sum-exp and moment. Brings all threads to the row's largest entry, then adds: a merge of all
// states at once.
template <class Row, class Team>
__device__ SoftmaxState<double> sweep_softmax(const Row& row, Exponent exponent, Team& team) {
  SoftmaxState<float> state;
  team.for_each_pack([&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const auto pack = row.template pack<n>(start);
    float max = state.max;
#pragma unroll
    for (int i = 0; i < n; ++i) max = larger(max, to_float(pack.values[i]));
    rebase(state, max, exponent);
    const float base = base_of(max);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float a = to_float(pack.values[i]) - base;
      const float weight = exp_of(a, exponent);
      state.sum += weight;
      state.moment += weight * at_least(a, exponent.lowest);
    }
  });
  float max[] = {state.max};
  team.reduce_max(max);
  rebase(state, max[0], exponent);
  double sums[] = {static_cast<double>(state.sum), static_cast<double>(state.moment)};
  team.reduce_sum(sums);
  return {max[0], sums[0], sums[1]};
}

}  // namespace sod::cuda
