#include "cuda/step_sums.cuh"

#include "cuda/rows.cuh"

namespace sod::cuda {
namespace {

// Each thread adds its rows of the step in row order; the threads are then added up in a fixed order.
__global__ void __launch_bounds__(kThreads) step_sums_kernel(Rows rows, ForwardOutputs outputs) {
  Shared& shared = shared_memory<Shared>();
  const std::int64_t step = blockIdx.x;
  const Span span = *span_of(outputs, step);
  StepSums sums;
  if (span.last >= 0) {
    const std::int64_t first = rows.count() - 1 - span.rows_from_first;
    for (std::int64_t row = first + threadIdx.x; row <= span.last; row += kThreads) {
      if (rows.step_ids[row] == step) add_token(sums, outputs, row);
    }
  }
  // The first reduction also waits until every thread has read the span.
  for (int column = 0; column < kStepColumns; ++column) {
    const double sum = reduce_sum(sums.values[column], shared);
    if (threadIdx.x == 0) outputs.step_sums[step * kStepColumns + column] = sum;
  }
}

}  // namespace

cudaError_t clear_spans(const ForwardOutputs& outputs, cudaStream_t stream) {
  const std::size_t size = static_cast<std::size_t>(outputs.num_steps) * sizeof(StepSums);
  return cudaMemsetAsync(outputs.step_sums, 0xff, size, stream);
}

cudaError_t sum_spans(const Rows& rows, const ForwardOutputs& outputs, cudaStream_t stream) {
  if (outputs.num_steps == 0) return cudaSuccess;
  launch_blocks<step_sums_kernel>(outputs.num_steps, stream, rows, outputs);
  return cudaGetLastError();
}

}  // namespace sod::cuda
