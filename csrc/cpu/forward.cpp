#include "cpu/pair_rows.h"
#include "cpu/rows.h"
#include "cpu/step_kl.h"
#include "sod/row_result.h"
#include "sod/segments.h"

namespace sod::cpu {
namespace {

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
template <class T>
double find_floor(const T* row, const Problem& problem, Exponent exponent) {
  const double temperature = problem.rows.temperature;
  if (row == nullptr || problem.min_log_prob == -static_cast<double>(kInfinity)) return problem.min_log_prob;
  const SoftmaxState<double> state = sweep_softmax(row, problem.rows.vocab_size, exponent);
  return floor_in_logits(log_sum_exp_of(state.max, state.sum, temperature), problem.min_log_prob,
                         temperature);
}

// Each block of the student comes from memory once, and from the cache for the reference.
template <WeightedBy weighting, class T>
Sums sweep(const RowTriple<T>& row, const Floors& floors, std::int64_t size, Exponent exponent) {
  Sums sums;
  PairState<double>& pair = sums.pair;
  Scratch student_scratch, teacher_scratch, reference_scratch;
  for_each_block<T>({row.student, row.teacher, row.reference}, size, [&](std::int64_t start, std::int64_t n) {
    const Block s = read_block(row.student + start, student_scratch, n);
    const Block t = read_block(row.teacher + start, teacher_scratch, n);
    const float student_max = larger(pair.student_max, s.max);
    if (row.reference != nullptr) {
      const Block r = read_block(row.reference + start, reference_scratch, n);
      rebase(sums.reference, pair, student_max, larger(sums.reference.max, r.max), exponent);
      add_reference(sums.reference, s.values, r.values, n, student_max, floors.reference, exponent);
    }
    rebase<weighting>(pair, student_max, larger(pair.teacher_max, t.max), exponent);
    if constexpr (weighting == WeightedBy::kStudent) {
      add_reverse_kl(pair, s.values, t.values, n, floors.pair, exponent);
    } else {
      add_forward_kl(pair, s.values, t.values, n, floors.pair, exponent);
    }
  });
  return sums;
}

template <WeightedBy weighting, class T>
RowState kl_row(const RowTriple<T>& row, const Problem& problem, Exponent exponent) {
  const T* floored = weighting == WeightedBy::kStudent ? row.teacher : row.student;
  const Floors floors{find_floor(floored, problem, exponent), find_floor(row.reference, problem, exponent)};
  const Sums sums = sweep<weighting>(row, floors, problem.rows.vocab_size, exponent);
  const double temperature = problem.rows.temperature;
  RowState state = finish_kl(sums.pair, problem.divergence, temperature);
  if (row.reference != nullptr) {
    finish_reference(state, sums.reference, sums.pair.student_sum, temperature);
  }
  return state;
}

// The student's sums; with a reference their pair is that of a reverse KL, in the same walk.
template <class T>
RowState student_row(const RowTriple<T>& row, const Problem& problem, Exponent exponent) {
  const double temperature = problem.rows.temperature;
  const std::int64_t size = problem.rows.vocab_size;
  if (row.reference == nullptr) {
    return finish_softmax(sweep_softmax(row.student, size, exponent), temperature);
  }
  const Floors floors{find_floor(row.reference, problem, exponent), 0};
  const RowTriple<T> pair{row.student, row.reference, nullptr};
  const PairState<double> sums = sweep<WeightedBy::kStudent>(pair, floors, size, exponent).pair;
  RowState state = finish_softmax({sums.student_max, sums.student_sum, sums.student_moment}, temperature);
  const ReferenceState<double> reference{sums.teacher_max, sums.teacher_sum, sums.difference};
  finish_reference(state, reference, sums.student_sum, temperature);
  return state;
}

// The mixture needs both log-sum-exps before its first entry.
template <class T>
RowState jsd_row(const RowTriple<T>& row, const Problem& problem, Exponent exponent) {
  const double temperature = problem.rows.temperature;
  const std::int64_t size = problem.rows.vocab_size;
  RowState state = student_row(row, problem, exponent);
  const SoftmaxState<double> teacher_sums = sweep_softmax(row.teacher, size, exponent);
  state.teacher_lse = log_sum_exp_of(teacher_sums.max, teacher_sums.sum, temperature);
  const Normaliser student = make_normaliser(state.student_lse, temperature);
  const Normaliser teacher = make_normaliser(state.teacher_lse, temperature);
  const Mixture mixture = make_mixture(problem.beta, student, teacher);
  JSDSums sums;
  Scratch student_scratch, teacher_scratch;
  for_each_block<T>({row.student, row.teacher}, size, [&](std::int64_t start, std::int64_t n) {
    const JSDBlock block = sum_jsd(widen(row.student + start, student_scratch, n),
                                   widen(row.teacher + start, teacher_scratch, n), n, student.base,
                                   teacher.base, mixture, exponent);
    sums.divergence += static_cast<double>(block.divergence);
    sums.student_weight += static_cast<double>(block.student_weight);
    sums.student_log_ratio += static_cast<double>(block.student_log_ratio);
  });
  finish_jsd(state, sums, problem.beta);
  return state;
}

template <class T>
RowState forward_row(const RowTriple<T>& row, const Problem& problem, Exponent exponent) {
  switch (problem.divergence) {
    case Divergence::kReverseKL:
      return kl_row<WeightedBy::kStudent>(row, problem, exponent);
    case Divergence::kForwardKL:
      return kl_row<WeightedBy::kTeacher>(row, problem, exponent);
    case Divergence::kJSD:
      break;
  }
  return jsd_row(row, problem, exponent);
}

template <class T>
void process_row(const Problem& problem, const ForwardOutputs& outputs, std::int64_t row, Exponent exponent) {
  if (problem.rows.step_ids[row] < 0) {
    write_zeros(outputs, row);
    return;
  }
  const RowTriple<T> logits{row_of<T>(problem.student, problem.rows, row),
                            row_of<T>(problem.teacher, problem.rows, row),
                            row_of<T>(problem.reference, problem.rows, row)};
  const RowState state = forward_row(logits, problem, exponent);
  write_row(outputs, row, state);
  if (problem.sampled_ids == nullptr) return;
  const std::int64_t id = problem.sampled_ids[row];
  write_sampled(outputs, row, state, widen_one(logits.student + id), widen_one(logits.teacher + id), problem);
}

}  // namespace

RowState pair_state(const float* student, const float* teacher, const Problem& problem, Exponent exponent) {
  return forward_row(RowTriple<float>{student, teacher, nullptr}, problem, exponent);
}

void measure_row(const Problem& problem, const ForwardOutputs& outputs, std::int64_t row, Exponent exponent) {
  with_row_type(problem.rows.dtype, [&](auto* type) {
    process_row<std::remove_pointer_t<decltype(type)>>(problem, outputs, row, exponent);
  });
}

void forward(const Problem& problem, const ForwardOutputs& outputs, int num_threads) {
  const Exponent exponent = make_exponent(problem.rows.temperature);
  for_each_row(problem.rows, num_threads,
               [&](std::int64_t row) { measure_row(problem, outputs, row, exponent); });
  sum_steps(problem.rows.step_ids, problem.rows.count(), outputs);
}

void sum_steps(const std::int64_t* step_ids, std::int64_t num_tokens, const ForwardOutputs& outputs) {
  StepSums* steps = reinterpret_cast<StepSums*>(outputs.step_sums);
  std::fill(steps, steps + outputs.num_steps, StepSums{});
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    const std::int64_t step = step_ids[token];
    if (step >= 0) add_token(steps[step], outputs, token);
  }
}

bool has_threads() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

}  // namespace sod::cpu
