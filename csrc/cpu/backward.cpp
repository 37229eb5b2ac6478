#include <cstring>

#include "cpu/rows.h"
#include "cpu/step_kl.h"
#include "sod/row_result.h"

namespace sod::cpu {
namespace {

template <class T>
Normaliser restore_normaliser(float log_sum_exp, const T* row, const Problem& problem, Exponent exponent) {
  if (!needs_remeasure(log_sum_exp)) return saved_normaliser(log_sum_exp, problem.temperature);
  return remeasured(log_sum_exp, sweep_softmax(row, problem.vocab_size, exponent), problem.temperature);
}

template <class T>
void sweep_gradient(const T* student, const T* teacher, T* out, const Problem& problem,
                    const GradientRow& row, bool with_divergence, std::int64_t sampled_id, float onehot,
                    Exponent exponent) {
  Scratch student_scratch, teacher_scratch, gradient;
  const T* second = with_divergence ? teacher : nullptr;
  for_each_block(student, second, problem.vocab_size, [&](std::int64_t start, std::int64_t n) {
    const float* s = widen(student + start, student_scratch, n);
    float* g = gradient.values;
    if (!with_divergence) {
      student_gradients(s, g, n, row, exponent);
    } else {
      const float* t = widen(teacher + start, teacher_scratch, n);
      switch (problem.divergence) {
        case Divergence::kReverseKL:
          reverse_kl_gradients(s, t, g, n, row, exponent);
          break;
        case Divergence::kForwardKL:
          forward_kl_gradients(s, t, g, n, row, exponent);
          break;
        case Divergence::kJSD:
          jsd_gradients(s, t, g, n, row, exponent);
          break;
      }
    }
    if (sampled_id >= start && sampled_id < start + n) g[sampled_id - start] += onehot;
    store(g, out + start, n);
  });
}

template <class T>
void process_row(const Logits& student_logits, const Logits& teacher_logits, const Problem& problem,
                 const BackwardInputs& inputs, const Gradient& gradient, std::int64_t row,
                 Exponent exponent) {
  T* out = static_cast<T*>(gradient.data) + row * gradient.width;
  const bool is_sampled = problem.sampled_ids != nullptr;
  const bool is_active = problem.step_ids[row] >= 0;
  Upstream upstream{0, 0, 0};
  if (is_active) {
    upstream.token_kl = static_cast<double>(inputs.grad_token_kl[row]);
    upstream.entropy = static_cast<double>(inputs.grad_student_entropy[row]);
    if (is_sampled) upstream.log_prob = static_cast<double>(inputs.grad_student_log_probs[row]);
  }
  // A row that nothing depends on has no gradient: neither read nor computed.
  if (upstream.token_kl == 0 && upstream.entropy == 0 && upstream.log_prob == 0) {
    std::memset(static_cast<void*>(out), 0, static_cast<std::size_t>(gradient.width) * sizeof(T));
    return;
  }
  const T* student = row_of<T>(student_logits, problem, row);
  const T* teacher = row_of<T>(teacher_logits, problem, row);
  const double kl_aux = static_cast<double>(inputs.kl_aux[row]);
  const bool with_divergence = has_divergence_gradient(upstream.token_kl, kl_aux);
  SavedRow saved{restore_normaliser(inputs.student_lse[row], student, problem, exponent),
                 saved_normaliser(0.0f, 1.0), kl_aux, static_cast<double>(inputs.student_entropy[row])};
  if (with_divergence)
    saved.teacher = restore_normaliser(inputs.teacher_lse[row], teacher, problem, exponent);
  const GradientRow coefficients = make_gradient_row(saved, upstream, with_divergence, problem);
  const std::int64_t sampled_id = is_sampled ? problem.sampled_ids[row] : -1;
  sweep_gradient(student, teacher, out, problem, coefficients, with_divergence, sampled_id,
                 static_cast<float>(upstream.log_prob / problem.temperature), exponent);
  std::memset(static_cast<void*>(out + problem.vocab_size), 0,
              static_cast<std::size_t>(gradient.width - problem.vocab_size) * sizeof(T));
}

}  // namespace

void backward(const Logits& student, const Logits& teacher, const Problem& problem,
              const BackwardInputs& inputs, const Gradient& gradient, int num_threads) {
  const Exponent exponent = make_exponent(problem.temperature);
  const std::int64_t rows = problem.batch * problem.time;
  with_row_type(problem.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(rows, gradient.width, num_threads, [&](std::int64_t row) {
      process_row<T>(student, teacher, problem, inputs, gradient, row, exponent);
      finish_stores();
    });
  });
}

}  // namespace sod::cpu
