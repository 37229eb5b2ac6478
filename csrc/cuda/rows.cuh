// One block of threads walks over one row: loads, and reductions over the block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/device.cuh"
#include "sod/number.h"
#include "sod/rows.h"
#include "sod/softmax_state.h"

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

// Brings all threads to the row's largest entries, then adds: a merge of all states at once. The reference
// goes before the pair.
__device__ inline ReferenceState<double> reduce(ReferenceState<float> state, const PairState<float>& pair,
                                                Exponent exponent, Shared& shared) {
  const float student_max = reduce_max(pair.student_max, shared);
  const float max = reduce_max(state.max, shared);
  rebase(state, pair, student_max, max, exponent);
  return {max, reduce_sum(static_cast<double>(state.sum), shared),
          reduce_sum(static_cast<double>(state.difference), shared)};
}

template <WeightedBy weighting>
__device__ PairState<double> reduce(PairState<float> state, Exponent exponent, Shared& shared) {
  const float student_max = reduce_max(state.student_max, shared);
  const float teacher_max = reduce_max(state.teacher_max, shared);
  rebase<weighting>(state, student_max, teacher_max, exponent);
  PairState<double> row;
  row.student_max = student_max;
  row.teacher_max = teacher_max;
  row.student_sum = reduce_sum(static_cast<double>(state.student_sum), shared);
  row.teacher_sum = reduce_sum(static_cast<double>(state.teacher_sum), shared);
  row.student_moment = reduce_sum(static_cast<double>(state.student_moment), shared);
  row.difference = reduce_sum(static_cast<double>(state.difference), shared);
  if constexpr (weighting == WeightedBy::kTeacher) {
    row.above_floor = reduce_sum(static_cast<double>(state.above_floor), shared);
  }
  return row;
}

__device__ inline SoftmaxState<double> reduce(SoftmaxState<float> state, Exponent exponent, Shared& shared) {
  const float max = reduce_max(state.max, shared);
  rebase(state, max, exponent);
  return {max, reduce_sum(static_cast<double>(state.sum), shared),
          reduce_sum(static_cast<double>(state.moment), shared)};
}

// One row's log-sum-exp and moment, by the whole block.
template <int width, class T>
__device__ SoftmaxState<double> sweep_softmax(const T* row, std::int64_t size, Exponent exponent,
                                              Shared& shared) {
  SoftmaxState<float> state;
  for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const Pack<T, n> pack = load<T, n>(row + start);
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
  return reduce(state, exponent, shared);
}

}  // namespace sod::cuda
