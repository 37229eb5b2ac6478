#include "cuda/log_probs.h"

#include "cuda/rows.cuh"
#include "sod/row_result.h"

namespace sod::cuda {
namespace {

// ---- kernels
// ------------------------------------------------------------------------------------------------

// One block per row. Reads the row once and keeps two sums per thread; then the threads share out the ids.
template <class T, int width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    log_probs_forward_kernel(LogProbProblem problem, LogProbOutputs outputs) {
  Shared& shared = shared_memory<Shared>();
  const std::int64_t row = blockIdx.x;
  const bool is_active = problem.rows.step_ids[row] >= 0;
  const double temperature = problem.rows.temperature;
  const T* student = row_of<T>(problem.student, problem.rows, row);
  RowState state{};
  if (is_active) {
    const Exponent exponent = make_exponent(temperature);
    const BlockTeam<width> team{problem.rows.vocab_size, shared};
    state = finish_softmax(sweep_softmax(DeviceRow<T>{student}, exponent, team), temperature);
  }
  if (threadIdx.x == 0) {
    outputs.student_entropy[row] = static_cast<float>(state.student_entropy);
    outputs.row_state[row] = {state.student_lse, state.student_entropy};
  }
  for (std::int64_t k = threadIdx.x; k < problem.num_ids; k += kThreads) {
    const std::int64_t at = row * problem.num_ids + k;
    const bool is_there = is_active && problem.ids[at] >= 0;
    const double logit = is_there ? static_cast<double>(to_float(student[problem.ids[at]])) : 0.0;
    outputs.log_probs[at] = is_there ? static_cast<float>(logit / temperature - state.student_lse) : 0.0f;
  }
}

// What an id gets on top. The first of its places in the row speaks for all of them, added up in their order.
struct Place {
  bool is_first;
  float gradient;
};

__device__ Place place_of(const std::int64_t* ids, const float* gradients, std::int64_t num_ids,
                          std::int64_t k) {
  const std::int64_t id = ids[k];
  if (id < 0) return {false, 0.0f};
  Place place{true, 0.0f};
  for (std::int64_t j = 0; j < num_ids; ++j) {
    if (ids[j] != id) continue;
    if (j < k) return {false, 0.0f};
    place.gradient += gradients[j];
  }
  return place;
}

// One block per row. Reads the row once and writes the gradient once, then the entries of the ids once more.
// `out` may be the row itself, so the ids' logits are put aside in `picked` first.
template <class T, int width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    log_probs_backward_kernel(LogProbProblem problem, LogProbBackwardInputs inputs, Gradient gradient) {
  Shared& shared = shared_memory<Shared>();
  GradientRow& shared_coefficients = shared_memory<GradientRow>();
  const std::int64_t row = blockIdx.x;
  T* out = row_of<T>(gradient, row);
  const std::int64_t* ids = problem.ids + row * problem.num_ids;
  const float* gradients = inputs.grad_log_probs + row * problem.num_ids;
  float* picked = inputs.picked + row * problem.num_ids;
  const T* student = row_of<T>(problem.student, problem.rows, row);
  const bool is_active = problem.rows.step_ids[row] >= 0;
  bool is_wanted = is_active && inputs.grad_student_entropy[row] != 0;
  double own = 0;
  for (std::int64_t k = threadIdx.x; is_active && k < problem.num_ids; k += kThreads) {
    if (ids[k] < 0) continue;
    picked[k] = to_float(student[ids[k]]);
    own += static_cast<double>(gradients[k]);
    is_wanted = is_wanted || gradients[k] != 0;
  }
  if (!__syncthreads_or(is_wanted)) {
    fill_zeros<width>(out, gradient.width);
    return;
  }
  const double temperature = problem.rows.temperature;
  const double grad_log_probs = reduce_sum(own, shared);
  if (threadIdx.x == 0) {
    const LogProbState& state = inputs.row_state[row];
    shared_coefficients = make_student_gradient_row(state.student_lse, state.student_entropy,
                                                    static_cast<double>(inputs.grad_student_entropy[row]),
                                                    grad_log_probs, temperature);
  }
  __syncthreads();
  const GradientRow coefficients = shared_coefficients;
  const Exponent exponent = make_exponent(temperature);
  const std::int64_t size = problem.rows.vocab_size;
  for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const Pack<T, n> s = load<T, n>(student + start);
    Pack<T, n> pack;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float a = to_float(s.values[i]) - coefficients.student_base;
      pack.values[i] = from_float<T>(student_gradient(a, coefficients, exponent));
    }
    store<T, n>(out + start, pack);
  });
  for (std::int64_t i = size + threadIdx.x; i < gradient.width; i += kThreads) out[i] = from_float<T>(0.0f);
  __syncthreads();
  const float scale = static_cast<float>(1.0 / temperature);
  for (std::int64_t k = threadIdx.x; k < problem.num_ids; k += kThreads) {
    const Place place = place_of(ids, gradients, problem.num_ids, k);
    if (!place.is_first) continue;
    const float a = picked[k] - coefficients.student_base;
    out[ids[k]] = from_float<T>(student_gradient(a, coefficients, exponent) + place.gradient * scale);
  }
}

}  // namespace

// ---- launchers
// ----------------------------------------------------------------------------------------------

cudaError_t log_probs_forward(const LogProbProblem& problem, const LogProbOutputs& outputs,
                              cudaStream_t stream) {
  if (problem.rows.count() == 0) return cudaSuccess;
  const std::int64_t rows = problem.rows.count();
  with_row_type(problem.rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (is_aligned<T>(problem.student)) {
      launch_blocks<log_probs_forward_kernel<T, kPackWidth<T>>>(rows, stream, problem, outputs);
    } else {
      launch_blocks<log_probs_forward_kernel<T, 1>>(rows, stream, problem, outputs);
    }
  });
  return cudaGetLastError();
}

cudaError_t log_probs_backward(const LogProbProblem& problem, const LogProbBackwardInputs& inputs,
                               const Gradient& gradient, cudaStream_t stream) {
  if (problem.rows.count() == 0) return cudaSuccess;
  const std::int64_t rows = problem.rows.count();
  with_row_type(problem.rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (is_aligned<T>(problem.student) && is_aligned<T>(gradient)) {
      launch_blocks<log_probs_backward_kernel<T, kPackWidth<T>>>(rows, stream, problem, inputs, gradient);
    } else {
      launch_blocks<log_probs_backward_kernel<T, 1>>(rows, stream, problem, inputs, gradient);
    }
  });
  return cudaGetLastError();
}

}  // namespace sod::cuda
