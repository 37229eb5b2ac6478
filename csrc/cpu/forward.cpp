#include "cpu/rows.h"
#include "cpu/step_kl.h"
#include "sod/row_result.h"
#include "sod/segments.h"

namespace sod::cpu {
namespace {

// The largest entries and sums of a row pair, needed for the KL and for the sampled log-probs.
struct RowForward {
  RowResult result;
  Normaliser student;
  Normaliser teacher;
};

template <WeightedBy weighting, class T>
PairState<double> sweep_pair(const T* student, const T* teacher, std::int64_t size, double floor,
                             Exponent exponent) {
  PairState<double> state;
  Scratch student_scratch, teacher_scratch;
  for_each_block(student, teacher, size, [&](std::int64_t start, std::int64_t n) {
    const Block s = read_block(student + start, student_scratch, n);
    const Block t = read_block(teacher + start, teacher_scratch, n);
    rebase<weighting>(state, larger(state.student_max, s.max), larger(state.teacher_max, t.max), exponent);
    if constexpr (weighting == WeightedBy::kStudent) {
      add_reverse_kl(state, s.values, t.values, n, floor, exponent);
    } else {
      add_forward_kl(state, s.values, t.values, n, floor, exponent);
    }
  });
  return state;
}

// KL either way. Its floor lies under a log-probability, so the log-sum-exp of that side must be known first.
template <WeightedBy weighting, class T>
RowForward kl_row(const T* student, const T* teacher, const Problem& problem, Exponent exponent) {
  double floor = problem.min_log_prob;
  if (floor != -static_cast<double>(kInfinity)) {
    const T* floored = weighting == WeightedBy::kStudent ? teacher : student;
    const SoftmaxState<double> state = sweep_softmax(floored, problem.vocab_size, exponent);
    const Normaliser normaliser = make_normaliser(state.max, state.sum, problem.temperature);
    floor = floor_in_logits(normaliser, problem.min_log_prob, problem.temperature);
  }
  const PairState<double> sums = sweep_pair<weighting>(student, teacher, problem.vocab_size, floor, exponent);
  return {finish_kl(sums, problem.divergence, problem.temperature),
          make_normaliser(sums.student_max, sums.student_sum, problem.temperature),
          make_normaliser(sums.teacher_max, sums.teacher_sum, problem.temperature)};
}

// The mixture needs both log-sum-exps before its first entry.
template <class T>
RowForward jsd_row(const T* student, const T* teacher, const Problem& problem, Exponent exponent) {
  const SoftmaxState<double> student_state = sweep_softmax(student, problem.vocab_size, exponent);
  const SoftmaxState<double> teacher_state = sweep_softmax(teacher, problem.vocab_size, exponent);
  const double temperature = problem.temperature;
  const Normaliser student_normaliser = make_normaliser(student_state.max, student_state.sum, temperature);
  const Normaliser teacher_normaliser = make_normaliser(teacher_state.max, teacher_state.sum, temperature);
  const Mixture mixture = make_mixture(problem.beta, student_normaliser, teacher_normaliser);
  JSDSums sums;
  Scratch student_scratch, teacher_scratch;
  for_each_block(student, teacher, problem.vocab_size, [&](std::int64_t start, std::int64_t n) {
    const JSDBlock block =
        sum_jsd(widen(student + start, student_scratch, n), widen(teacher + start, teacher_scratch, n), n,
                student_normaliser.base, teacher_normaliser.base, mixture, exponent);
    sums.divergence += static_cast<double>(block.divergence);
    sums.student_weight += static_cast<double>(block.student_weight);
    sums.student_log_ratio += static_cast<double>(block.student_log_ratio);
  });
  return {finish_jsd(student_state, student_normaliser, teacher_normaliser, sums, problem.beta, temperature),
          student_normaliser, teacher_normaliser};
}

template <class T>
RowForward forward_row(const T* student, const T* teacher, const Problem& problem, Exponent exponent) {
  switch (problem.divergence) {
    case Divergence::kReverseKL:
      return kl_row<WeightedBy::kStudent>(student, teacher, problem, exponent);
    case Divergence::kForwardKL:
      return kl_row<WeightedBy::kTeacher>(student, teacher, problem, exponent);
    case Divergence::kJSD:
      break;
  }
  return jsd_row(student, teacher, problem, exponent);
}

void write_row(const ForwardOutputs& outputs, std::int64_t row, const RowResult& result) {
  outputs.token_kl[row] = result.token_kl;
  outputs.student_entropy[row] = result.student_entropy;
  outputs.student_lse[row] = result.student_lse;
  outputs.teacher_lse[row] = result.teacher_lse;
  outputs.kl_aux[row] = result.kl_aux;
}

template <class T>
void process_row(const Logits& student_logits, const Logits& teacher_logits, const Problem& problem,
                 const ForwardOutputs& outputs, std::int64_t row, Exponent exponent) {
  const bool is_sampled = problem.sampled_ids != nullptr;
  if (problem.step_ids[row] < 0) {
    write_row(outputs, row, {0, 0, 0, 0, 0});
    if (is_sampled) outputs.student_log_probs[row] = outputs.teacher_log_probs[row] = 0;
    return;
  }
  const T* student = row_of<T>(student_logits, problem, row);
  const T* teacher = row_of<T>(teacher_logits, problem, row);
  const RowForward forward = forward_row(student, teacher, problem, exponent);
  write_row(outputs, row, forward.result);
  if (!is_sampled) return;
  const std::int64_t id = problem.sampled_ids[row];
  const SampledLogProbs sampled = sampled_log_probs(widen_one(student + id), widen_one(teacher + id),
                                                    forward.student, forward.teacher, problem);
  outputs.student_log_probs[row] = sampled.student;
  outputs.teacher_log_probs[row] = sampled.teacher;
}

// One thread, in row order: cheap beside the sweeps, and the same bits every time.
void sum_steps(const Problem& problem, const ForwardOutputs& outputs) {
  StepSums* steps = reinterpret_cast<StepSums*>(outputs.step_sums);
  std::fill(steps, steps + outputs.num_steps, StepSums{});
  for (std::int64_t row = 0; row < problem.batch * problem.time; ++row) {
    const std::int64_t step = problem.step_ids[row];
    if (step >= 0) add_token(steps[step], outputs, problem.sampled_ids != nullptr, row);
  }
}

}  // namespace

void forward(const Logits& student, const Logits& teacher, const Problem& problem,
             const ForwardOutputs& outputs, int num_threads) {
  const Exponent exponent = make_exponent(problem.temperature);
  with_row_type(problem.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(problem.batch * problem.time, problem.vocab_size, num_threads, [&](std::int64_t row) {
      process_row<T>(student, teacher, problem, outputs, row, exponent);
    });
  });
  sum_steps(problem, outputs);
}

bool has_threads() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

}  // namespace sod::cpu
