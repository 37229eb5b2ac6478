// From a row's sums to its reported numbers, and from those to the coefficients of its gradient. Double
// precision, once per row.
//
// The backward sweep knows each log-sum-exp only as a float, which is off by half a unit in the last place.
// So it takes the *rounded* log-sum-exp as the base that logits are measured from, and `kl_aux` is stored
// relative to the same rounded bases: then the rounding cancels in f - E f and in mass * p - q, and what is
// left is one common factor within 4e-6 of 1. Where a row's log-sum-exp is so large that this no longer
// holds, the backward sweep measures it again (`needs_remeasure`), and `kl_aux` counts on that.
#pragma once

#include <cmath>

#include "sod/divergence.h"
#include "sod/portable.h"
#include "sod/softmax_state.h"
#include "sod/step_kl.h"

namespace sod {

struct RowResult {
  float token_kl;
  float student_entropy;
  float student_lse;
  float teacher_lse;
  float kl_aux;
};

// A row's log-sum-exp as reported, the base made of it, and what the base lacks.
struct Normaliser {
  double log_sum_exp;  // exact
  float base;          // in raw logits
  double residual;     // exact log-sum-exp - base / temperature
};

SOD_INLINE float base_from_lse(float log_sum_exp, double temperature) {
  return static_cast<float>(static_cast<double>(log_sum_exp) * temperature);
}

SOD_INLINE Normaliser make_normaliser(float max, double sum, double temperature) {
  const double log_sum_exp = static_cast<double>(max) / temperature + std::log(sum);
  const float base = base_from_lse(static_cast<float>(log_sum_exp), temperature);
  return {log_sum_exp, base, log_sum_exp - static_cast<double>(base) / temperature};
}

SOD_INLINE bool needs_remeasure(float log_sum_exp) {
  return std::fabs(log_sum_exp) >= 128.0f;
}

// What the backward sweep will know of the residual; forward and backward must agree on it, so that E f fits
// its f.
SOD_INLINE double known_residual(const Normaliser& normaliser) {
  return needs_remeasure(static_cast<float>(normaliser.log_sum_exp)) ? normaliser.residual : 0.0;
}

SOD_INLINE double unknown_residual(const Normaliser& normaliser) {
  return normaliser.residual - known_residual(normaliser);
}

// The floor that `min_log_prob` puts under the raw logits of a row. Double, for it is far from 0 where the
// row is.
SOD_INLINE double floor_in_logits(const Normaliser& normaliser, double min_log_prob, double temperature) {
  return (min_log_prob + normaliser.log_sum_exp) * temperature;
}

// Reported divergences are never negative; NaN stays NaN.
SOD_INLINE float reported(double divergence) {
  return static_cast<float>(divergence < 0 ? 0.0 : divergence);
}

SOD_INLINE RowResult finish_kl(const PairState<double>& sums, Divergence divergence, double temperature) {
  const Normaliser student = make_normaliser(sums.student_max, sums.student_sum, temperature);
  const Normaliser teacher = make_normaliser(sums.teacher_max, sums.teacher_sum, temperature);
  const double log_student_sum = std::log(sums.student_sum);
  const double log_teacher_sum = std::log(sums.teacher_sum);
  double kl;
  double aux;
  if (divergence == Divergence::kReverseKL) {
    const double mean = sums.difference / sums.student_sum;
    kl = mean / temperature - log_student_sum + log_teacher_sum;
    aux = kl + unknown_residual(student) - unknown_residual(teacher);
  } else {
    kl = sums.difference / sums.teacher_sum / temperature - log_teacher_sum + log_student_sum;
    aux =
        sums.above_floor / sums.teacher_sum * std::exp(unknown_residual(teacher) - unknown_residual(student));
    // Tells the backward sweep that this row's divergence is infinite and has no gradient.
    if (kl == static_cast<double>(kInfinity)) aux = kl;
  }
  const double entropy = log_student_sum - sums.student_moment / sums.student_sum / temperature;
  return {reported(kl), static_cast<float>(entropy), static_cast<float>(student.log_sum_exp),
          static_cast<float>(teacher.log_sum_exp), static_cast<float>(aux)};
}

// Sums of `JSDEntry` over a row.
struct JSDSums {
  double divergence = 0;
  double student_weight = 0;
  double student_log_ratio = 0;
};

SOD_INLINE RowResult finish_jsd(const SoftmaxState<double>& student, const Normaliser& student_normaliser,
                                const Normaliser& teacher_normaliser, const JSDSums& sums, double beta,
                                double temperature) {
  const double aux = (1 - beta) * sums.student_log_ratio / sums.student_weight;
  const double entropy = std::log(student.sum) - student.moment / student.sum / temperature;
  return {reported(sums.divergence), static_cast<float>(entropy),
          static_cast<float>(student_normaliser.log_sum_exp),
          static_cast<float>(teacher_normaliser.log_sum_exp), static_cast<float>(aux)};
}

SOD_INLINE Mixture make_mixture(double beta, const Normaliser& student, const Normaliser& teacher) {
  return {static_cast<float>(beta), static_cast<float>(std::exp(-known_residual(student))),
          static_cast<float>(std::exp(-known_residual(teacher)))};
}

struct SampledLogProbs {
  float student;
  float teacher;  // not below the floor
};

SOD_INLINE SampledLogProbs sampled_log_probs(float student_logit, float teacher_logit,
                                             const Normaliser& student, const Normaliser& teacher,
                                             const Problem& problem) {
  const double temperature = problem.temperature;
  const double own = static_cast<double>(student_logit) / temperature - student.log_sum_exp;
  const double other = static_cast<double>(teacher_logit) / temperature - teacher.log_sum_exp;
  return {static_cast<float>(own),
          static_cast<float>(other < problem.min_log_prob ? problem.min_log_prob : other)};
}

// Upstream gradients of one token.
struct Upstream {
  double token_kl;
  double log_prob;
  double entropy;
};

// What the backward sweep has of a row. A normaliser's residual is 0 unless it was measured again.
struct SavedRow {
  Normaliser student;
  Normaliser teacher;
  double kl_aux;
  double entropy;
};

SOD_INLINE Normaliser saved_normaliser(float log_sum_exp, double temperature) {
  return {static_cast<double>(log_sum_exp), base_from_lse(log_sum_exp, temperature), 0.0};
}

// The base stays the saved one, whatever the new measurement would round to: `kl_aux` belongs to it.
SOD_INLINE Normaliser remeasured(float saved_log_sum_exp, const SoftmaxState<double>& state,
                                 double temperature) {
  const double log_sum_exp = make_normaliser(state.max, state.sum, temperature).log_sum_exp;
  const float base = base_from_lse(saved_log_sum_exp, temperature);
  return {log_sum_exp, base, log_sum_exp - static_cast<double>(base) / temperature};
}

// A row of infinite divergence has no gradient from it; a row without an upstream gradient needs none.
SOD_INLINE bool has_divergence_gradient(double grad_token_kl, double kl_aux) {
  return grad_token_kl != 0 && kl_aux != static_cast<double>(kInfinity);
}

SOD_INLINE GradientRow make_gradient_row(const SavedRow& saved, const Upstream& upstream,
                                         bool with_divergence, const Problem& problem) {
  const double temperature = problem.temperature;
  const double student_residual = known_residual(saved.student);
  const double teacher_residual = known_residual(saved.teacher);
  const double student_factor = std::exp(-student_residual);
  // Every entry is multiplied by p (JSD: normalised already), so the factor that p lacks goes into the
  // coefficients.
  const bool is_jsd = problem.divergence == Divergence::kJSD && with_divergence;
  const double factor = is_jsd ? 1.0 : student_factor;
  const double entropy_term = upstream.entropy * (saved.entropy - student_residual);
  double constant = -(entropy_term + upstream.log_prob) * factor / temperature;
  double difference = 0;
  double floor = -static_cast<double>(kInfinity);
  if (with_divergence) {
    const double scale = upstream.token_kl / temperature;
    switch (problem.divergence) {
      case Divergence::kReverseKL:
        difference = scale / temperature * factor;
        constant -= scale * (saved.kl_aux + student_residual - teacher_residual) * factor;
        floor = (problem.min_log_prob + teacher_residual) * temperature;
        break;
      case Divergence::kForwardKL:
        difference = scale * std::exp(-teacher_residual);
        constant += scale * saved.kl_aux * factor;
        floor = (problem.min_log_prob + student_residual) * temperature;
        break;
      case Divergence::kJSD:
        difference = scale * (1 - problem.beta);
        constant -= scale * saved.kl_aux;
        break;
    }
  }
  return {saved.student.base,
          saved.teacher.base,
          static_cast<float>(floor),
          static_cast<float>(difference),
          static_cast<float>(-upstream.entropy * factor / (temperature * temperature)),
          static_cast<float>(constant),
          make_mixture(problem.beta, saved.student, saved.teacher)};
}

}  // namespace sod
