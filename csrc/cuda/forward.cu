#include "cuda/rows.cuh"
#include "cuda/step_kl.h"
#include "sod/row_result.h"
#include "sod/segments.h"

namespace sod::cuda {
namespace {

// ---- kernels
// ------------------------------------------------------------------------------------------------

struct RowForward {
  RowResult result;
  Normaliser student;
  Normaliser teacher;
};

// KL either way: one sweep with a running maximum per thread, after one over the floored side if there is a
// floor.
template <WeightedBy weighting, int width, class T>
__device__ RowForward kl_row(const T* student, const T* teacher, const Problem& problem, Exponent exponent,
                             Shared& shared) {
  double floor = problem.min_log_prob;
  if (floor != -static_cast<double>(kInfinity)) {
    const T* floored = weighting == WeightedBy::kStudent ? teacher : student;
    const SoftmaxState<double> state = sweep_softmax<width>(floored, problem.vocab_size, exponent, shared);
    floor = floor_in_logits(make_normaliser(state.max, state.sum, problem.temperature), floor,
                            problem.temperature);
  }
  PairState<float> state;
  for_each_pack<width>(problem.vocab_size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const Pack<T, n> s = load<T, n>(student + start);
    const Pack<T, n> t = load<T, n>(teacher + start);
    float student_max = state.student_max;
    float teacher_max = state.teacher_max;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      student_max = larger(student_max, to_float(s.values[i]));
      teacher_max = larger(teacher_max, to_float(t.values[i]));
    }
    rebase<weighting>(state, student_max, teacher_max, exponent);
    const float student_base = base_of(student_max);
    const float teacher_base = base_of(teacher_max);
    const float other_base = weighting == WeightedBy::kStudent ? teacher_base : student_base;
    const float floor_here = static_cast<float>(floor - static_cast<double>(other_base));
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float a = to_float(s.values[i]) - student_base;
      const float b = to_float(t.values[i]) - teacher_base;
      const KLEntry entry = weighting == WeightedBy::kStudent ? reverse_kl_entry(a, b, floor_here, exponent)
                                                              : forward_kl_entry(a, b, floor_here, exponent);
      add(state, PairState<float>{0, 0, entry.student_weight, entry.teacher_weight, entry.student_moment,
                                  entry.difference, entry.above_floor});
    }
  });
  const PairState<double> sums = reduce<weighting>(state, exponent, shared);
  return {finish_kl(sums, problem.divergence, problem.temperature),
          make_normaliser(sums.student_max, sums.student_sum, problem.temperature),
          make_normaliser(sums.teacher_max, sums.teacher_sum, problem.temperature)};
}

// Two sweeps: the mixture needs both log-sum-exps before its first entry.
template <int width, class T>
__device__ RowForward jsd_row(const T* student, const T* teacher, const Problem& problem, Exponent exponent,
                              Shared& shared) {
  const double temperature = problem.temperature;
  const SoftmaxState<double> student_state =
      sweep_softmax<width>(student, problem.vocab_size, exponent, shared);
  const SoftmaxState<double> teacher_state =
      sweep_softmax<width>(teacher, problem.vocab_size, exponent, shared);
  const Normaliser student_normaliser = make_normaliser(student_state.max, student_state.sum, temperature);
  const Normaliser teacher_normaliser = make_normaliser(teacher_state.max, teacher_state.sum, temperature);
  const Mixture mixture = make_mixture(problem.beta, student_normaliser, teacher_normaliser);
  float divergence = 0, student_weight = 0, student_log_ratio = 0;
  for_each_pack<width>(problem.vocab_size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const Pack<T, n> s = load<T, n>(student + start);
    const Pack<T, n> t = load<T, n>(teacher + start);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const JSDEntry entry = jsd_entry(to_float(s.values[i]) - student_normaliser.base,
                                       to_float(t.values[i]) - teacher_normaliser.base, mixture, exponent);
      divergence += entry.divergence;
      student_weight += entry.student_weight;
      student_log_ratio += entry.student_log_ratio;
    }
  });
  const JSDSums sums{reduce_sum(static_cast<double>(divergence), shared),
                     reduce_sum(static_cast<double>(student_weight), shared),
                     reduce_sum(static_cast<double>(student_log_ratio), shared)};
  return {finish_jsd(student_state, student_normaliser, teacher_normaliser, sums, problem.beta, temperature),
          student_normaliser, teacher_normaliser};
}

template <class T>
__device__ void write_row(const ForwardOutputs& outputs, const Problem& problem, std::int64_t row,
                          const RowForward& forward, const T* student, const T* teacher) {
  outputs.token_kl[row] = forward.result.token_kl;
  outputs.student_entropy[row] = forward.result.student_entropy;
  outputs.student_lse[row] = forward.result.student_lse;
  outputs.teacher_lse[row] = forward.result.teacher_lse;
  outputs.kl_aux[row] = forward.result.kl_aux;
  if (problem.sampled_ids == nullptr) return;
  const std::int64_t id = problem.sampled_ids[row];
  const SampledLogProbs sampled = sampled_log_probs(to_float(student[id]), to_float(teacher[id]),
                                                    forward.student, forward.teacher, problem);
  outputs.student_log_probs[row] = sampled.student;
  outputs.teacher_log_probs[row] = sampled.teacher;
}

__device__ void write_zeros(const ForwardOutputs& outputs, bool is_sampled, std::int64_t row) {
  outputs.token_kl[row] = outputs.student_entropy[row] = outputs.kl_aux[row] = 0;
  outputs.student_lse[row] = outputs.teacher_lse[row] = 0;
  if (is_sampled) outputs.student_log_probs[row] = outputs.teacher_log_probs[row] = 0;
}

// One block per row. Reads the row pair once (JSD: twice), keeps five sums per thread, writes seven floats.
// Rows of no step cost one load of their step id.
template <class T, Divergence divergence, int width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    forward_kernel(Logits student_logits, Logits teacher_logits, Problem problem, ForwardOutputs outputs) {
  __shared__ Shared shared;
  const std::int64_t row = blockIdx.x;
  if (problem.step_ids[row] < 0) {
    if (threadIdx.x == 0) write_zeros(outputs, problem.sampled_ids != nullptr, row);
    return;
  }
  const T* student = row_of<T>(student_logits, problem, row);
  const T* teacher = row_of<T>(teacher_logits, problem, row);
  const Exponent exponent = make_exponent(problem.temperature);
  RowForward forward;
  if constexpr (divergence == Divergence::kReverseKL) {
    forward = kl_row<WeightedBy::kStudent, width>(student, teacher, problem, exponent, shared);
  } else if constexpr (divergence == Divergence::kForwardKL) {
    forward = kl_row<WeightedBy::kTeacher, width>(student, teacher, problem, exponent, shared);
  } else {
    forward = jsd_row<width>(student, teacher, problem, exponent, shared);
  }
  if (threadIdx.x == 0) write_row(outputs, problem, row, forward, student, teacher);
}

// One block per step: its threads walk over all rows, each adding those of the step in row order, and are
// then added up in a fixed order. Reads the step ids once per step.
__global__ void __launch_bounds__(kThreads) step_sums_kernel(Problem problem, ForwardOutputs outputs) {
  __shared__ Shared shared;
  const std::int64_t step = blockIdx.x;
  const std::int64_t rows = problem.batch * problem.time;
  StepSums sums;
  for (std::int64_t row = threadIdx.x; row < rows; row += kThreads) {
    if (problem.step_ids[row] == step) add_token(sums, outputs, problem.sampled_ids != nullptr, row);
  }
  for (int column = 0; column < kStepColumns; ++column) {
    const double sum = reduce_sum(sums.values[column], shared);
    if (threadIdx.x == 0) outputs.step_sums[step * kStepColumns + column] = sum;
  }
}

// ---- launchers
// ----------------------------------------------------------------------------------------------

template <class T, Divergence divergence>
void launch(const Logits& student, const Logits& teacher, const Problem& problem,
            const ForwardOutputs& outputs, cudaStream_t stream) {
  const unsigned rows = static_cast<unsigned>(problem.batch * problem.time);
  if (is_aligned<T>(student.data, student.stride_batch, student.stride_time) &&
      is_aligned<T>(teacher.data, teacher.stride_batch, teacher.stride_time)) {
    forward_kernel<T, divergence, kPackWidth<T>>
        <<<rows, kThreads, 0, stream>>>(student, teacher, problem, outputs);
  } else {
    forward_kernel<T, divergence, 1><<<rows, kThreads, 0, stream>>>(student, teacher, problem, outputs);
  }
}

template <class T>
void launch(const Logits& student, const Logits& teacher, const Problem& problem,
            const ForwardOutputs& outputs, cudaStream_t stream) {
  switch (problem.divergence) {
    case Divergence::kReverseKL:
      return launch<T, Divergence::kReverseKL>(student, teacher, problem, outputs, stream);
    case Divergence::kForwardKL:
      return launch<T, Divergence::kForwardKL>(student, teacher, problem, outputs, stream);
    case Divergence::kJSD:
      return launch<T, Divergence::kJSD>(student, teacher, problem, outputs, stream);
  }
}

}  // namespace

cudaError_t forward(const Logits& student, const Logits& teacher, const Problem& problem,
                    const ForwardOutputs& outputs, cudaStream_t stream) {
  if (problem.batch * problem.time > 0) {
    switch (problem.dtype) {
      case DType::kFloat32:
        launch<float>(student, teacher, problem, outputs, stream);
        break;
      case DType::kBFloat16:
        launch<__nv_bfloat16>(student, teacher, problem, outputs, stream);
        break;
      case DType::kFloat16:
        launch<__half>(student, teacher, problem, outputs, stream);
        break;
    }
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  if (outputs.num_steps > 0) {
    const unsigned steps = static_cast<unsigned>(outputs.num_steps);
    step_sums_kernel<<<steps, kThreads, 0, stream>>>(problem, outputs);
  }
  return cudaGetLastError();
}

}  // namespace sod::cuda
