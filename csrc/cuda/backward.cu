#include "cuda/row_gradient.cuh"
#include "cuda/rows.cuh"
#include "cuda/step_kl.h"
#include "sod/row_result.h"

namespace sod::cuda {
namespace {

// ---- kernels
// ------------------------------------------------------------------------------------------------

// One block per row. Reads each row once and writes the gradient once; rows of no step, and rows that nothing
// depends on, are only written, and a target without a gradient is not read.
template <class T, Divergence divergence, bool has_reference, int width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    backward_kernel(Problem problem, BackwardInputs inputs, Gradient gradient) {
  const std::int64_t row = blockIdx.x;
  T* out = row_of<T>(gradient, row);
  const Upstream upstream = read_upstream(inputs, problem.rows.step_ids[row] >= 0, row);
  if (is_zero(upstream)) {
    fill_zeros<width>(out, gradient.width);
    return;
  }
  Coefficients& coefficients = shared_memory<Coefficients>();
  const Targets targets =
      share_coefficients<has_reference>(problem, inputs.row_state[row], upstream, coefficients);
  const std::int64_t size = problem.rows.vocab_size;
  const std::int64_t sampled_id = upstream.log_prob != 0 ? problem.sampled_ids[row] : -1;
  write_gradient<divergence, has_reference, width>(rows_of<T>(problem, row), out, size, targets, coefficients,
                                                   sampled_id, upstream.log_prob, problem.rows.temperature);
  for (std::int64_t i = size + threadIdx.x; i < gradient.width; i += kThreads) out[i] = from_float<T>(0.0f);
}

// ---- launchers
// ----------------------------------------------------------------------------------------------

template <class T, Divergence divergence, bool has_reference>
void launch(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
            cudaStream_t stream) {
  const std::int64_t rows = problem.rows.count();
  if (is_aligned<T>(problem) && is_aligned<T>(gradient)) {
    launch_blocks<backward_kernel<T, divergence, has_reference, kPackWidth<T>>>(rows, stream, problem, inputs,
                                                                                gradient);
  } else {
    launch_blocks<backward_kernel<T, divergence, has_reference, 1>>(rows, stream, problem, inputs, gradient);
  }
}

}  // namespace

cudaError_t backward(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
                     cudaStream_t stream) {
  if (problem.rows.count() == 0) return cudaSuccess;
  with_variant(problem, [&](auto* type, auto divergence, auto has_reference) {
    launch<std::remove_pointer_t<decltype(type)>, decltype(divergence)::value,
           decltype(has_reference)::value>(problem, inputs, gradient, stream);
  });
  return cudaGetLastError();
}

}  // namespace sod::cuda
