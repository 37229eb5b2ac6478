#include "cuda/row_state.cuh"
#include "cuda/rows.cuh"
#include "cuda/step_kl.h"
#include "cuda/step_sums.cuh"
#include "sod/row_result.h"

namespace sod::cuda {
namespace {

// ---- kernels
// ------------------------------------------------------------------------------------------------

// One block per row. Reads each row once (JSD: student and teacher twice), keeps five sums per thread, seven
// with a reference, and writes a few numbers. Rows of no step cost one load of their step id.
template <class T, Divergence divergence, bool has_reference, int width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    forward_kernel(Problem problem, ForwardOutputs outputs) {
  Shared& shared = shared_memory<Shared>();
  const std::int64_t row = blockIdx.x;
  if (problem.rows.step_ids[row] < 0) {
    if (threadIdx.x == 0) write_zeros(outputs, row);
    return;
  }
  const RowTriple<DeviceRow<T>> logits = rows_of<T>(problem, row);
  BlockTeam<width> team{problem.rows.vocab_size, shared};
  const Exponent exponent = make_exponent(problem.rows.temperature);
  const RowState state = measure_row<divergence, has_reference>(logits, problem, exponent, team);
  if (threadIdx.x != 0) return;
  write_row(outputs, row, state);
  widen_span(outputs, problem.rows, row);
  if (problem.sampled_ids == nullptr) return;
  const std::int64_t id = problem.sampled_ids[row];
  write_sampled(outputs, row, state, logits.student.at(id), logits.teacher.at(id), problem);
}

// ---- launchers
// ----------------------------------------------------------------------------------------------

template <class T, Divergence divergence, bool has_reference>
void launch(const Problem& problem, const ForwardOutputs& outputs, cudaStream_t stream) {
  const std::int64_t rows = problem.rows.count();
  if (is_aligned<T>(problem)) {
    launch_blocks<forward_kernel<T, divergence, has_reference, kPackWidth<T>>>(rows, stream, problem,
                                                                               outputs);
  } else {
    launch_blocks<forward_kernel<T, divergence, has_reference, 1>>(rows, stream, problem, outputs);
  }
}

}  // namespace

cudaError_t forward(const Problem& problem, const ForwardOutputs& outputs, cudaStream_t stream) {
  const cudaError_t error = clear_spans(outputs, stream);
  if (error != cudaSuccess) return error;
  if (problem.rows.count() > 0) {
    with_variant(problem, [&](auto* type, auto divergence, auto has_reference) {
      launch<std::remove_pointer_t<decltype(type)>, decltype(divergence)::value,
             decltype(has_reference)::value>(problem, outputs, stream);
    });
  }
  const cudaError_t launch_error = cudaGetLastError();
  return launch_error != cudaSuccess ? launch_error : sum_spans(problem.rows, outputs, stream);
}

}  // namespace sod::cuda
