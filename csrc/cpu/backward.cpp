#include "cpu/pair_rows.h"
#include "cpu/rows.h"
#include "cpu/step_kl.h"
#include "sod/row_result.h"

namespace sod::cpu {

void pair_gradients(const float* s, const float* t, float* gradient, std::int64_t n, Divergence divergence,
                    const GradientRow& row, Exponent exponent) {
  switch (divergence) {
    case Divergence::kReverseKL:
      return reverse_kl_gradients(s, t, gradient, n, row, exponent);
    case Divergence::kForwardKL:
      return forward_kl_gradients(s, t, gradient, n, row, exponent);
    case Divergence::kJSD:
      return jsd_gradients(s, t, gradient, n, row, exponent);
  }
}

namespace {

// The rows of one token whose gradient is wanted; null where a target has no gradient to give.
template <class T>
struct RowGradient {
  const T* student;
  const T* teacher;
  const T* reference;
  GradientRow pair;
  ReferenceGradientRow second;
  std::int64_t sampled_id;  // negative without
  float onehot;             // what it gets on top
};

// A block of the gradient is complete before it is stored, so `out` may be the student's row.
template <class T>
void sweep(const RowGradient<T>& row, T* out, const Problem& problem, Exponent exponent) {
  Scratch student_scratch, target_scratch, gradient;
  float* g = gradient.values;
  const Destination destination = destination_of(out, row.student);
  const std::int64_t size = problem.rows.vocab_size;
  for_each_block<T>({row.student, row.teacher, row.reference}, size, [&](std::int64_t start, std::int64_t n) {
    const float* s = widen(row.student + start, student_scratch, n);
    if (row.teacher == nullptr) {
      student_gradients(s, g, n, row.pair, exponent);
    } else {
      const float* t = widen(row.teacher + start, target_scratch, n);
      pair_gradients(s, t, g, n, problem.divergence, row.pair, exponent);
    }
    if (row.reference != nullptr) {
      const float* r = widen(row.reference + start, target_scratch, n);
      add_reference_gradients(s, r, g, n, row.second, exponent);
    }
    if (row.sampled_id >= start && row.sampled_id < start + n) g[row.sampled_id - start] += row.onehot;
    store(g, out + start, n, destination);
  });
}

template <class T>
RowGradient<T> prepare_row(const Problem& problem, const RowState& state, const Upstream& upstream,
                           std::int64_t row) {
  const double temperature = problem.rows.temperature;
  RowGradient<T> gradient{};
  gradient.student = row_of<T>(problem.student, problem.rows, row);
  if (has_gradient(upstream.token_kl, state.divergence)) {
    gradient.teacher = row_of<T>(problem.teacher, problem.rows, row);
    gradient.pair = make_gradient_row(state, upstream, problem);
  } else {
    gradient.pair = make_student_gradient_row(state.student_lse, state.student_entropy, upstream.entropy,
                                              upstream.log_prob, temperature);
  }
  if (has_gradient(upstream.reference_kl, state.reference_kl)) {
    gradient.reference = row_of<T>(problem.reference, problem.rows, row);
    gradient.second = make_reference_gradient_row(state, upstream.reference_kl, problem);
  }
  gradient.sampled_id = problem.sampled_ids != nullptr ? problem.sampled_ids[row] : -1;
  gradient.onehot = static_cast<float>(upstream.log_prob / temperature);
  return gradient;
}

template <class T>
void process_row(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
                 std::int64_t row, Exponent exponent) {
  T* out = row_of<T>(gradient, row);
  const Upstream upstream = read_upstream(inputs, problem.rows.step_ids[row] >= 0, row);
  if (is_zero(upstream)) {
    fill_zeros(out, 0, gradient.width);
    return;
  }
  sweep(prepare_row<T>(problem, inputs.row_state[row], upstream, row), out, problem, exponent);
  fill_zeros(out, problem.rows.vocab_size, gradient.width);
}

void differentiate_row(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
                       std::int64_t row, Exponent exponent) {
  with_row_type(problem.rows.dtype, [&](auto* type) {
    process_row<std::remove_pointer_t<decltype(type)>>(problem, inputs, gradient, row, exponent);
  });
  finish_stores();
}

}  // namespace

void backward(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
              int num_threads) {
  const Exponent exponent = make_exponent(problem.rows.temperature);
  for_each_row(problem.rows, num_threads,
               [&](std::int64_t row) { differentiate_row(problem, inputs, gradient, row, exponent); });
}

void forward_backward(const Problem& problem, const BackwardInputs& inputs, const ForwardOutputs& outputs,
                      const Gradient& gradient, int num_threads) {
  const Exponent exponent = make_exponent(problem.rows.temperature);
  for_each_row(problem.rows, num_threads, [&](std::int64_t row) {
    measure_row(problem, outputs, row, exponent);
    differentiate_row(problem, inputs, gradient, row, exponent);
  });
  sum_steps(problem.rows.step_ids, problem.rows.count(), outputs);
}

}  // namespace sod::cpu
