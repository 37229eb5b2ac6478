// Sums per step on the device, in row order and without floating-point atomics.
//
// The forward kernel notes the first and the last row of every step as it goes, with integer atomics, whose
// result does not depend on their order. Then one block per step walks over those rows alone. Steps are runs
// of tokens, so together the blocks read every row about once: O(rows + steps). Where steps interleave, a
// block also reads the ids in between; the sums are right all the same.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "sod/segments.h"

namespace sod::cuda {

// Until a step's sums are written, their memory holds its span. Both members only grow, and all bits set mean
// a step without rows.
struct Span {
  long long rows_from_first;  // rows - 1 - first row
  long long last;
};
static_assert(sizeof(Span) <= sizeof(StepSums), "a span must fit where the sums will be");

__device__ __forceinline__ Span* span_of(const ForwardOutputs& outputs, std::int64_t step) {
  return reinterpret_cast<Span*>(outputs.step_sums + step * kStepColumns);
}

// By one thread per active row.
__device__ __forceinline__ void widen_span(const ForwardOutputs& outputs, const Rows& rows,
                                           std::int64_t row) {
  Span* const span = span_of(outputs, rows.step_ids[row]);
  atomicMax(&span->rows_from_first, static_cast<long long>(rows.count() - 1 - row));
  atomicMax(&span->last, static_cast<long long>(row));
}

// Before and after the kernel that widens the spans.
cudaError_t clear_spans(const ForwardOutputs& outputs, cudaStream_t stream);
cudaError_t sum_spans(const Rows& rows, const ForwardOutputs& outputs, cudaStream_t stream);

}  // namespace sod::cuda
