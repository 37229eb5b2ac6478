#include "cpu/log_probs.h"

#include <tuple>
#include <vector>

#include "cpu/rows.h"
#include "sod/row_result.h"

namespace sod::cpu {
namespace {

template <class T>
void forward_row(const LogProbProblem& problem, const LogProbOutputs& outputs, std::int64_t row,
                 Exponent exponent) {
  float* log_probs = outputs.log_probs + row * problem.num_ids;
  RowState state{};
  std::fill(log_probs, log_probs + problem.num_ids, 0.0f);
  if (problem.rows.step_ids[row] >= 0) {
    const double temperature = problem.rows.temperature;
    const T* student = row_of<T>(problem.student, problem.rows, row);
    state = finish_softmax(sweep_softmax(student, problem.rows.vocab_size, exponent), temperature);
    const std::int64_t* ids = problem.ids + row * problem.num_ids;
    for (std::int64_t k = 0; k < problem.num_ids; ++k) {
      if (ids[k] < 0) continue;
      const double logit = static_cast<double>(widen_one(student + ids[k]));
      log_probs[k] = static_cast<float>(logit / temperature - state.student_lse);
    }
  }
  outputs.student_entropy[row] = static_cast<float>(state.student_entropy);
  outputs.row_state[row] = {state.student_lse, state.student_entropy};
}

// An id with an upstream gradient, and where it stands among the row's ids.
struct Picked {
  std::int64_t id;
  std::int64_t position;
  float gradient;
};

// In the order of the ids, so that one walk over the row meets them; equal ids in the order they were given.
void pick(const LogProbProblem& problem, const LogProbBackwardInputs& inputs, std::int64_t row,
          std::vector<Picked>& picked) {
  picked.clear();
  for (std::int64_t k = 0; k < problem.num_ids; ++k) {
    const std::int64_t at = row * problem.num_ids + k;
    const float gradient = problem.ids[at] < 0 ? 0.0f : inputs.grad_log_probs[at];
    if (gradient != 0.0f) picked.push_back({problem.ids[at], k, gradient});
  }
  std::sort(picked.begin(), picked.end(), [](const Picked& x, const Picked& y) {
    return std::tie(x.id, x.position) < std::tie(y.id, y.position);
  });
}

template <class T>
void sweep(const T* student, T* out, const LogProbProblem& problem, const GradientRow& row,
           const std::vector<Picked>& picked, Exponent exponent) {
  const float scale = static_cast<float>(1.0 / problem.rows.temperature);
  Scratch scratch, gradient;
  const Destination destination = destination_of(out, student);
  auto next = picked.begin();
  for_each_block<T>({student}, problem.rows.vocab_size, [&](std::int64_t start, std::int64_t n) {
    student_gradients(widen(student + start, scratch, n), gradient.values, n, row, exponent);
    for (; next != picked.end() && next->id < start + n; ++next) {
      gradient.values[next->id - start] += next->gradient * scale;
    }
    store(gradient.values, out + start, n, destination);
  });
}

template <class T>
void backward_row(const LogProbProblem& problem, const LogProbBackwardInputs& inputs,
                  const Gradient& gradient, std::int64_t row, std::vector<Picked>& picked,
                  Exponent exponent) {
  T* out = row_of<T>(gradient, row);
  const bool is_active = problem.rows.step_ids[row] >= 0;
  const double grad_entropy = is_active ? static_cast<double>(inputs.grad_student_entropy[row]) : 0.0;
  picked.clear();
  if (is_active) pick(problem, inputs, row, picked);
  // A row that nothing depends on has no gradient: neither read nor computed.
  if (grad_entropy == 0 && picked.empty()) {
    fill_zeros(out, 0, gradient.width);
    return;
  }
  double grad_log_probs = 0;
  for (const Picked& each : picked) grad_log_probs += static_cast<double>(each.gradient);
  const LogProbState& state = inputs.row_state[row];
  const GradientRow coefficients = make_student_gradient_row(
      state.student_lse, state.student_entropy, grad_entropy, grad_log_probs, problem.rows.temperature);
  sweep(row_of<T>(problem.student, problem.rows, row), out, problem, coefficients, picked, exponent);
  fill_zeros(out, problem.rows.vocab_size, gradient.width);
}

}  // namespace

void log_probs_forward(const LogProbProblem& problem, const LogProbOutputs& outputs, int num_threads) {
  const Exponent exponent = make_exponent(problem.rows.temperature);
  with_row_type(problem.rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(problem.rows, num_threads,
                 [&](std::int64_t row) { forward_row<T>(problem, outputs, row, exponent); });
  });
}

void log_probs_backward(const LogProbProblem& problem, const LogProbBackwardInputs& inputs,
                        const Gradient& gradient, int num_threads) {
  const Exponent exponent = make_exponent(problem.rows.temperature);
  with_row_type(problem.rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(problem.rows, num_threads, [&](std::int64_t row) {
      thread_local std::vector<Picked> picked;
      backward_row<T>(problem, inputs, gradient, row, picked, exponent);
      finish_stores();
    });
  });
}

}  // namespace sod::cpu
