// From a row's sums to its state, from the state to the reported numbers and to the coefficients of the
// gradient. Double precision, once per row.
//
// Entries are measured from a float base near the row's log-sum-exp, so that a single float subtraction gives
// log p up to the residual: what the log-sum-exp, a double, has beyond the base. Forward and backward sweep
// get both from the same double, so f and E f of a gradient p * (f - E f) belong together exactly, however
// far from 0 the logits lie.
#pragma once

#include <cmath>

#include "sod/divergence.h"
#include "sod/portable.h"
#include "sod/softmax_state.h"
#include "sod/step_kl.h"

namespace sod {

struct Normaliser {
  float base;       // in raw logits
  double residual;  // log-sum-exp - base / temperature
};

SOD_INLINE Normaliser make_normaliser(double log_sum_exp, double temperature) {
  const float base = static_cast<float>(log_sum_exp * temperature);
  return {base, log_sum_exp - static_cast<double>(base) / temperature};
}

SOD_INLINE double log_sum_exp_of(float max, double sum, double temperature) {
  return static_cast<double>(max) / temperature + std::log(sum);
}

// The floor that `min_log_prob` puts under the raw logits of a row. Double, for it is far from 0 where the
// row is.
SOD_INLINE double floor_in_logits(double log_sum_exp, double min_log_prob, double temperature) {
  return (min_log_prob + log_sum_exp) * temperature;
}

// ---- forward: sums -> state -> outputs
// -----------------------------------------------------------------------------

// The state of a row without a reference.
SOD_INLINE RowState finish_kl(const PairState<double>& sums, Divergence divergence, double temperature) {
  const double log_student_sum = std::log(sums.student_sum);
  const double log_teacher_sum = std::log(sums.teacher_sum);
  RowState state{};
  state.student_lse = log_sum_exp_of(sums.student_max, sums.student_sum, temperature);
  state.teacher_lse = log_sum_exp_of(sums.teacher_max, sums.teacher_sum, temperature);
  state.student_entropy = log_student_sum - sums.student_moment / sums.student_sum / temperature;
  if (divergence == Divergence::kReverseKL) {
    state.divergence = sums.difference / sums.student_sum / temperature - log_student_sum + log_teacher_sum;
    state.aux = state.divergence;
  } else {
    state.divergence = sums.difference / sums.teacher_sum / temperature - log_teacher_sum + log_student_sum;
    state.aux = sums.above_floor / sums.teacher_sum;
  }
  return state;
}

// Sums of `JSDEntry` over a row.
struct JSDSums {
  double divergence = 0;
  double student_weight = 0;
  double student_log_ratio = 0;
};

SOD_INLINE Mixture make_mixture(double beta, const Normaliser& student, const Normaliser& teacher) {
  return {static_cast<float>(beta), static_cast<float>(std::exp(-student.residual)),
          static_cast<float>(std::exp(-teacher.residual))};
}

// The student's part of the state, which the mixture needs before its first entry.
SOD_INLINE RowState finish_softmax(const SoftmaxState<double>& student, double temperature) {
  RowState state{};
  state.student_lse = log_sum_exp_of(student.max, student.sum, temperature);
  state.student_entropy = std::log(student.sum) - student.moment / student.sum / temperature;
  return state;
}

SOD_INLINE void finish_jsd(RowState& state, const JSDSums& sums, double beta) {
  state.divergence = sums.divergence;
  state.aux = (1 - beta) * sums.student_log_ratio / sums.student_weight;
}

SOD_INLINE void finish_reference(RowState& state, const ReferenceState<double>& sums, double student_sum,
                                 double temperature) {
  state.reference_lse = log_sum_exp_of(sums.max, sums.sum, temperature);
  state.reference_kl =
      sums.difference / student_sum / temperature - std::log(student_sum) + std::log(sums.sum);
}

// Reported divergences are never negative; NaN stays NaN.
SOD_INLINE float reported(double divergence) {
  return static_cast<float>(divergence < 0 ? 0.0 : divergence);
}

SOD_INLINE void write_row(const ForwardOutputs& outputs, std::int64_t row, const RowState& state) {
  outputs.token_kl[row] = reported(state.divergence);
  outputs.student_entropy[row] = static_cast<float>(state.student_entropy);
  outputs.row_state[row] = state;
  if (outputs.token_reference_kl != nullptr) outputs.token_reference_kl[row] = reported(state.reference_kl);
}

// The teacher's log-probability is reported not below the floor.
SOD_INLINE void write_sampled(const ForwardOutputs& outputs, std::int64_t row, const RowState& state,
                              float student_logit, float teacher_logit, const Problem& problem) {
  const double temperature = problem.rows.temperature;
  const double student = static_cast<double>(student_logit) / temperature - state.student_lse;
  const double teacher = static_cast<double>(teacher_logit) / temperature - state.teacher_lse;
  outputs.student_log_probs[row] = static_cast<float>(student);
  outputs.teacher_log_probs[row] =
      static_cast<float>(teacher < problem.min_log_prob ? problem.min_log_prob : teacher);
}

SOD_INLINE void write_zeros(const ForwardOutputs& outputs, std::int64_t row) {
  write_row(outputs, row, RowState{});
  if (outputs.student_log_probs == nullptr) return;
  outputs.student_log_probs[row] = 0;
  outputs.teacher_log_probs[row] = 0;
}

// ---- backward: upstream gradients and state -> coefficients
// ----------------------------------------------------------

// Upstream gradients of one token, 0 where there is none to give.
struct Upstream {
  double token_kl;
  double reference_kl;
  double log_prob;
  double entropy;
};

SOD_INLINE Upstream read_upstream(const BackwardInputs& inputs, bool is_active, std::int64_t row) {
  const auto at = [&](const float* gradients) {
    return is_active && gradients != nullptr ? static_cast<double>(gradients[row]) : 0.0;
  };
  return {at(inputs.grad_token_kl), at(inputs.grad_token_reference_kl), at(inputs.grad_student_log_probs),
          at(inputs.grad_student_entropy)};
}

// A row that nothing depends on has no gradient: neither read nor computed.
SOD_INLINE bool is_zero(const Upstream& upstream) {
  return upstream.token_kl == 0 && upstream.reference_kl == 0 && upstream.log_prob == 0 &&
         upstream.entropy == 0;
}

// A row of infinite divergence has no gradient from it; a row without an upstream gradient needs none.
SOD_INLINE bool has_gradient(double upstream, double divergence) {
  return upstream != 0 && divergence != static_cast<double>(kInfinity);
}

// The part that needs the student alone: `log_prob` is the sum over all ids.
SOD_INLINE GradientRow make_student_gradient_row(double lse, double entropy, double grad_entropy,
                                                 double grad_log_prob, double temperature) {
  const Normaliser student = make_normaliser(lse, temperature);
  // Every entry is multiplied by exp((s - base) / temperature), so the factor that p has besides goes into
  // the coefficients.
  const double factor = std::exp(-student.residual) / temperature;
  GradientRow row{};
  row.student_base = student.base;
  row.student_log_prob = static_cast<float>(-grad_entropy * factor / temperature);
  row.constant = static_cast<float>(-(grad_entropy * (entropy - student.residual) + grad_log_prob) * factor);
  return row;
}

SOD_INLINE GradientRow make_gradient_row(const RowState& state, const Upstream& upstream,
                                         const Problem& problem) {
  const double temperature = problem.rows.temperature;
  const Normaliser student = make_normaliser(state.student_lse, temperature);
  const Normaliser teacher = make_normaliser(state.teacher_lse, temperature);
  const bool is_jsd = problem.divergence == Divergence::kJSD;
  // The JSD's entries are multiplied by p itself.
  const double factor = is_jsd ? 1.0 : std::exp(-student.residual);
  const double scale = upstream.token_kl / temperature;
  const double entropy_term = upstream.entropy * (state.student_entropy - student.residual);
  double constant = -(entropy_term + upstream.log_prob) * factor / temperature;
  double difference = 0;
  double floor = -static_cast<double>(kInfinity);
  switch (problem.divergence) {
    case Divergence::kReverseKL:
      difference = scale / temperature * factor;
      constant -= scale * (state.aux + student.residual - teacher.residual) * factor;
      floor = (problem.min_log_prob + teacher.residual) * temperature;
      break;
    case Divergence::kForwardKL:
      difference = scale * std::exp(-teacher.residual);
      constant += scale * state.aux * factor;
      floor = (problem.min_log_prob + student.residual) * temperature;
      break;
    case Divergence::kJSD:
      difference = scale * (1 - problem.beta);
      constant -= scale * state.aux;
      break;
  }
  return {student.base,
          teacher.base,
          static_cast<float>(floor),
          static_cast<float>(difference),
          static_cast<float>(-upstream.entropy * factor / (temperature * temperature)),
          static_cast<float>(constant),
          make_mixture(problem.beta, student, teacher)};
}

SOD_INLINE ReferenceGradientRow make_reference_gradient_row(const RowState& state, double grad_reference_kl,
                                                            const Problem& problem) {
  const double temperature = problem.rows.temperature;
  const Normaliser student = make_normaliser(state.student_lse, temperature);
  const Normaliser reference = make_normaliser(state.reference_lse, temperature);
  const double scale = grad_reference_kl / temperature * std::exp(-student.residual);
  return {student.base, reference.base,
          static_cast<float>((problem.min_log_prob + reference.residual) * temperature),
          static_cast<float>(scale / temperature),
          static_cast<float>(-scale * (state.reference_kl + student.residual - reference.residual))};
}

}  // namespace sod
