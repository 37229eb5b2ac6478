#include "cuda/rows.cuh"
#include "cuda/step_kl.h"
#include "cuda/step_sums.cuh"
#include "sod/row_result.h"

namespace sod::cuda {
namespace {

// ---- kernels
// ------------------------------------------------------------------------------------------------

// The rows of one token; no reference without one.
template <class T>
struct RowTriple {
  const T* student;
  const T* teacher;
  const T* reference;
};

// In raw logits, -inf for none.
struct Floors {
  double pair;  // under the teacher for the reverse KL, under the student for the forward KL
  double reference;
};

struct Sums {
  PairState<double> pair;
  ReferenceState<double> reference;
};

// A floor lies under a log-probability, so the log-sum-exp of that side must be known first.
template <int width, class T>
__device__ double find_floor(const T* row, const Problem& problem, Exponent exponent, Shared& shared) {
  if (problem.min_log_prob == -static_cast<double>(kInfinity)) return problem.min_log_prob;
  const double temperature = problem.rows.temperature;
  const SoftmaxState<double> state = sweep_softmax<width>(row, problem.rows.vocab_size, exponent, shared);
  return floor_in_logits(log_sum_exp_of(state.max, state.sum, temperature), problem.min_log_prob,
                         temperature);
}

template <class T, int n>
__device__ __forceinline__ float largest(const Pack<T, n>& pack, float max) {
#pragma unroll
  for (int i = 0; i < n; ++i) max = larger(max, to_float(pack.values[i]));
  return max;
}

// One walk with running maxima per thread.
template <WeightedBy weighting, bool has_reference, int width, class T>
__device__ Sums sweep(const RowTriple<T>& row, const Floors& floors, std::int64_t size, Exponent exponent,
                      Shared& shared) {
  PairState<float> pair;
  ReferenceState<float> second;
  for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const Pack<T, n> s = load<T, n>(row.student + start);
    const Pack<T, n> t = load<T, n>(row.teacher + start);
    Pack<T, n> r;
    const float student_max = largest(s, pair.student_max);
    [[maybe_unused]] float reference_base = 0, reference_floor = 0;
    if constexpr (has_reference) {
      r = load<T, n>(row.reference + start);
      rebase(second, pair, student_max, largest(r, second.max), exponent);
      reference_base = base_of(second.max);
      reference_floor = static_cast<float>(floors.reference - static_cast<double>(reference_base));
    }
    rebase<weighting>(pair, student_max, largest(t, pair.teacher_max), exponent);
    const float student_base = base_of(pair.student_max);
    const float teacher_base = base_of(pair.teacher_max);
    const float other_base = weighting == WeightedBy::kStudent ? teacher_base : student_base;
    const float floor = static_cast<float>(floors.pair - static_cast<double>(other_base));
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float a = to_float(s.values[i]) - student_base;
      const float b = to_float(t.values[i]) - teacher_base;
      const KLEntry entry = weighting == WeightedBy::kStudent ? reverse_kl_entry(a, b, floor, exponent)
                                                              : forward_kl_entry(a, b, floor, exponent);
      add(pair, PairState<float>{0, 0, entry.student_weight, entry.teacher_weight, entry.student_moment,
                                 entry.difference, entry.above_floor});
      if constexpr (has_reference) {
        const float c = to_float(r.values[i]) - reference_base;
        const ReferenceEntry other = reference_entry(a, c, reference_floor, exponent);
        second.sum += other.weight;
        second.difference += other.difference;
      }
    }
  });
  Sums sums;
  if constexpr (has_reference) sums.reference = reduce(second, pair, exponent, shared);
  sums.pair = reduce<weighting>(pair, exponent, shared);
  return sums;
}

template <WeightedBy weighting, bool has_reference, int width, class T>
__device__ RowState kl_row(const RowTriple<T>& row, const Problem& problem, Exponent exponent,
                           Shared& shared) {
  const T* floored = weighting == WeightedBy::kStudent ? row.teacher : row.student;
  Floors floors{find_floor<width>(floored, problem, exponent, shared), 0};
  if constexpr (has_reference) floors.reference = find_floor<width>(row.reference, problem, exponent, shared);
  const Sums sums =
      sweep<weighting, has_reference, width>(row, floors, problem.rows.vocab_size, exponent, shared);
  const double temperature = problem.rows.temperature;
  RowState state = finish_kl(sums.pair, problem.divergence, temperature);
  if constexpr (has_reference) {
    finish_reference(state, sums.reference, sums.pair.student_sum, temperature);
  }
  return state;
}

// The student's sums; with a reference their pair is that of a reverse KL, in the same walk.
template <bool has_reference, int width, class T>
__device__ RowState student_row(const RowTriple<T>& row, const Problem& problem, Exponent exponent,
                                Shared& shared) {
  const double temperature = problem.rows.temperature;
  const std::int64_t size = problem.rows.vocab_size;
  if constexpr (has_reference) {
    const Floors floors{find_floor<width>(row.reference, problem, exponent, shared), 0};
    const RowTriple<T> pair{row.student, row.reference, nullptr};
    const PairState<double> sums =
        sweep<WeightedBy::kStudent, false, width>(pair, floors, size, exponent, shared).pair;
    RowState state = finish_softmax({sums.student_max, sums.student_sum, sums.student_moment}, temperature);
    finish_reference(state, {sums.teacher_max, sums.teacher_sum, sums.difference}, sums.student_sum,
                     temperature);
    return state;
  } else {
    return finish_softmax(sweep_softmax<width>(row.student, size, exponent, shared), temperature);
  }
}

// The mixture needs both log-sum-exps before its first entry.
template <bool has_reference, int width, class T>
__device__ RowState jsd_row(const RowTriple<T>& row, const Problem& problem, Exponent exponent,
                            Shared& shared) {
  const double temperature = problem.rows.temperature;
  const std::int64_t size = problem.rows.vocab_size;
  RowState state = student_row<has_reference, width>(row, problem, exponent, shared);
  const SoftmaxState<double> teacher_sums = sweep_softmax<width>(row.teacher, size, exponent, shared);
  state.teacher_lse = log_sum_exp_of(teacher_sums.max, teacher_sums.sum, temperature);
  const Normaliser student = make_normaliser(state.student_lse, temperature);
  const Normaliser teacher = make_normaliser(state.teacher_lse, temperature);
  const Mixture mixture = make_mixture(problem.beta, student, teacher);
  float divergence = 0, student_weight = 0, student_log_ratio = 0;
  for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const Pack<T, n> s = load<T, n>(row.student + start);
    const Pack<T, n> t = load<T, n>(row.teacher + start);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const JSDEntry entry = jsd_entry(to_float(s.values[i]) - student.base,
                                       to_float(t.values[i]) - teacher.base, mixture, exponent);
      divergence += entry.divergence;
      student_weight += entry.student_weight;
      student_log_ratio += entry.student_log_ratio;
    }
  });
  const JSDSums sums{reduce_sum(static_cast<double>(divergence), shared),
                     reduce_sum(static_cast<double>(student_weight), shared),
                     reduce_sum(static_cast<double>(student_log_ratio), shared)};
  finish_jsd(state, sums, problem.beta);
  return state;
}

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
  RowTriple<T> logits{row_of<T>(problem.student, problem.rows, row),
                      row_of<T>(problem.teacher, problem.rows, row), nullptr};
  if constexpr (has_reference) logits.reference = row_of<T>(problem.reference, problem.rows, row);
  const Exponent exponent = make_exponent(problem.rows.temperature);
  RowState state;
  if constexpr (divergence == Divergence::kReverseKL) {
    state = kl_row<WeightedBy::kStudent, has_reference, width>(logits, problem, exponent, shared);
  } else if constexpr (divergence == Divergence::kForwardKL) {
    state = kl_row<WeightedBy::kTeacher, has_reference, width>(logits, problem, exponent, shared);
  } else {
    state = jsd_row<has_reference, width>(logits, problem, exponent, shared);
  }
  if (threadIdx.x != 0) return;
  write_row(outputs, row, state);
  widen_span(outputs, problem.rows, row);
  if (problem.sampled_ids == nullptr) return;
  const std::int64_t id = problem.sampled_ids[row];
  write_sampled(outputs, row, state, to_float(logits.student[id]), to_float(logits.teacher[id]), problem);
}

// ---- launchers
// ----------------------------------------------------------------------------------------------

template <class T, Divergence divergence, bool has_reference>
void launch(const Problem& problem, const ForwardOutputs& outputs, cudaStream_t stream) {
  const std::int64_t rows = problem.rows.count();
  if (is_aligned<T>(problem.student) && is_aligned<T>(problem.teacher) && is_aligned<T>(problem.reference)) {
    launch_blocks<forward_kernel<T, divergence, has_reference, kPackWidth<T>>>(rows, stream, problem,
                                                                               outputs);
  } else {
    launch_blocks<forward_kernel<T, divergence, has_reference, 1>>(rows, stream, problem, outputs);
  }
}

template <class T, Divergence divergence>
void launch(const Problem& problem, const ForwardOutputs& outputs, cudaStream_t stream) {
  if (problem.reference.data != nullptr) {
    launch<T, divergence, true>(problem, outputs, stream);
  } else {
    launch<T, divergence, false>(problem, outputs, stream);
  }
}

template <class T>
void launch(const Problem& problem, const ForwardOutputs& outputs, cudaStream_t stream) {
  switch (problem.divergence) {
    case Divergence::kReverseKL:
      return launch<T, Divergence::kReverseKL>(problem, outputs, stream);
    case Divergence::kForwardKL:
      return launch<T, Divergence::kForwardKL>(problem, outputs, stream);
    case Divergence::kJSD:
      return launch<T, Divergence::kJSD>(problem, outputs, stream);
  }
}

}  // namespace

cudaError_t forward(const Problem& problem, const ForwardOutputs& outputs, cudaStream_t stream) {
  const cudaError_t error = clear_spans(outputs, stream);
  if (error != cudaSuccess) return error;
  if (problem.rows.count() > 0) {
    with_row_type(problem.rows.dtype, [&](auto* type) {
      launch<std::remove_pointer_t<decltype(type)>>(problem, outputs, stream);
    });
  }
  const cudaError_t launch_error = cudaGetLastError();
  return launch_error != cudaSuccess ? launch_error : sum_spans(problem.rows, outputs, stream);
}

}  // namespace sod::cuda
