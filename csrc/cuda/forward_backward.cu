#include "cuda/cluster_plan.h"
#include "cuda/cluster_team.cuh"
#include "cuda/row_gradient.cuh"
#include "cuda/row_state.cuh"
#include "cuda/rows.cuh"
#include "cuda/step_kl.h"
#include "cuda/step_sums.cuh"
#include "sod/row_result.h"

namespace sod::cuda {
namespace {

// ---- kernel
// -------------------------------------------------------------------------------------------------

// The row's numbers by the first block, the sampled ones by the block that has the entry: `sampled_id` is
// its position in the part, negative in all others.
template <class Row>
__device__ void write_outputs(const RowTriple<Row>& logits, const Problem& problem,
                              const ForwardOutputs& outputs, std::int64_t row, const RowState& state,
                              std::int64_t sampled_id) {
  if (threadIdx.x != 0) return;
  if (cluster_rank() == 0) {
    write_row(outputs, row, state);
    widen_span(outputs, problem.rows, row);
  }
  if (sampled_id < 0) return;
  write_sampled(outputs, row, state, logits.student.at(sampled_id), logits.teacher.at(sampled_id), problem);
}

template <class T, Divergence divergence, bool has_reference>
__device__ __forceinline__ void process_row(const Problem& problem, const BackwardInputs& inputs,
                                            const ForwardOutputs& outputs, const Gradient& gradient) {
  constexpr int width = kPackWidth<T>;
  const std::int64_t row = blockIdx.x / cluster_size(), vocab = problem.rows.vocab_size;
  const int size = static_cast<int>(cluster_size()), rank = static_cast<int>(cluster_rank());
  const Part part = part_of_block(vocab, width, size, rank);
  T* const row_out = row_of<T>(gradient, row);
  T* const out = row_out + part.start;
  for (std::int64_t i = vocab + threadIdx.x; rank == size - 1 && i < gradient.width; i += kThreads) {
    row_out[i] = from_float<T>(0.0f);
  }
  if (problem.rows.step_ids[row] < 0) {
    if (rank == 0 && threadIdx.x == 0) write_zeros(outputs, row);
    fill_zeros<width>(out, part.size);
    return;
  }
  ClusterMemory& memory = shared_memory<ClusterMemory>();
  const auto logits = fetch_rows<has_reference, T>(problem, row, part, memory.barriers);
  ClusterTeam<T> team(part, memory);
  const RowState state =
      measure_row<divergence, has_reference>(logits, problem, make_exponent(problem.rows.temperature), team);
  // This block reads no other's memory any more.
  cluster_arrive();
  const std::int64_t sampled_id =
      problem.sampled_ids == nullptr ? -1 : position_in(part, problem.sampled_ids[row]);
  write_outputs(logits, problem, outputs, row, state, sampled_id);
  const Upstream upstream = read_upstream(inputs, true, row);
  if (is_zero(upstream)) {
    fill_zeros<width>(out, part.size);
  } else {
    const Targets targets = share_coefficients<has_reference>(problem, state, upstream, memory.coefficients);
    write_gradient<divergence, has_reference, width>(logits, out, part.size, targets, memory.coefficients,
                                                     upstream.log_prob != 0 ? sampled_id : -1,
                                                     upstream.log_prob, problem.rows.temperature);
  }
  // Others may read this block's until they have come here.
  cluster_wait();
}

// One cluster per row, which reads it once and writes the gradient once; whatever is walked over again lies
// in shared memory.
template <class T, Divergence divergence, bool has_reference>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    forward_backward_kernel(Problem problem, BackwardInputs inputs, ForwardOutputs outputs,
                            Gradient gradient) {
  if constexpr (kHasClusters) {
    process_row<T, divergence, has_reference>(problem, inputs, outputs, gradient);
  }
}

// ---- launcher
// -----------------------------------------------------------------------------------------------

// The blocks of a row's cluster. 0, which stands for the forward and then the backward kernel, where the card
// or what the kernel was compiled for has no clusters, where 16 bytes do not divide the rows, and where they
// are too long for 8 blocks.
template <class T, bool has_reference>
int cluster_size_for(const Problem& problem, const Gradient& gradient, std::int64_t block_bytes) {
  if (!is_aligned<T>(problem) || !is_aligned<T>(gradient)) return 0;
  const std::int64_t packs = divide_up(problem.rows.vocab_size, kPackWidth<T>);
  return choose_cluster_size(packs, has_reference ? 3 : 2, block_bytes);
}

// Does nothing and says so where the row takes no cluster.
template <class T, Divergence divergence, bool has_reference>
bool launch(const Problem& problem, const BackwardInputs& inputs, const ForwardOutputs& outputs,
            const Gradient& gradient, cudaStream_t stream) {
  constexpr auto kernel = forward_backward_kernel<T, divergence, has_reference>;
  const int size = cluster_size_for<T, has_reference>(problem, gradient, cluster_block_bytes<kernel>());
  if (size == 0) return false;
  const Part part = part_of_block(problem.rows.vocab_size, kPackWidth<T>, size, 0);
  const std::int64_t bytes = (has_reference ? 3 : 2) * part.capacity * static_cast<std::int64_t>(sizeof(T));
  // An error shows in cudaGetLastError, like those of the launch.
  (void)clear_spans(outputs, stream);
  launch_clusters<kernel>(problem.rows.count(), size, bytes, stream, problem, inputs, outputs, gradient);
  return true;
}

}  // namespace

cudaError_t forward_backward(const Problem& problem, const BackwardInputs& inputs,
                             const ForwardOutputs& outputs, const Gradient& gradient, cudaStream_t stream) {
  bool is_launched = false;
  if (problem.rows.count() > 0) {
    with_variant(problem, [&](auto* type, auto divergence, auto has_reference) {
      is_launched = launch<std::remove_pointer_t<decltype(type)>, decltype(divergence)::value,
                           decltype(has_reference)::value>(problem, inputs, outputs, gradient, stream);
    });
  }
  if (is_launched) {
    const cudaError_t error = cudaGetLastError();
    return error != cudaSuccess ? error : sum_spans(problem.rows, outputs, stream);
  }
  const cudaError_t error = forward(problem, outputs, stream);
  return error != cudaSuccess ? error : backward(problem, inputs, gradient, stream);
}

}  // namespace sod::cuda
