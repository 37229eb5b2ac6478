// Value and gradient of every divergence at one vocabulary entry.
//
// a and b are the student's and the teacher's logit minus the row's base, in raw logits (not yet divided by
// the temperature); p ~ exp(a / temperature), q ~ exp(b / temperature). Floors are in the same units, -inf
// for none. An entry without weight contributes exactly 0 whatever the other side holds, which is why the
// weight selects instead of multiplying: 0 * inf is NaN.
#pragma once

#include "sod/exp2.h"
#include "sod/log_ratio.h"
#include "sod/portable.h"

namespace sod {

SOD_INLINE float where_weighted(float weight, float value) {
  return weight != 0.0f ? value : 0.0f;
}

// ---- values
// -------------------------------------------------------------------------------------------------

struct KLEntry {
  float student_weight;
  float teacher_weight;
  float student_moment;
  float difference;
  float above_floor;
};

// KL(p || q): expectation of a - b under p.
SOD_INLINE KLEntry reverse_kl_entry(float a, float b, float floor, Exponent exponent) {
  const float p = exp_of(a, exponent);
  const float q = exp_of(b, exponent);
  const float difference = a - at_least(b, floor);
  return {p, q, p * at_least(a, exponent.lowest), p * where_weighted(p, difference), 0.0f};
}

// KL(q || p): expectation of b - a under q; the floor is under the student here.
SOD_INLINE KLEntry forward_kl_entry(float a, float b, float floor, Exponent exponent) {
  const float p = exp_of(a, exponent);
  const float q = exp_of(b, exponent);
  const float difference = b - at_least(a, floor);
  return {p, q, p * at_least(a, exponent.lowest), q * where_weighted(q, difference), a > floor ? q : 0.0f};
}

// The reference's part of KL(p || r), beside whatever the pair's divergence is; c is the reference's logit.
struct ReferenceEntry {
  float weight;
  float difference;
};

SOD_INLINE ReferenceEntry reference_entry(float a, float c, float floor, Exponent exponent) {
  const float p = exp_of(a, exponent);
  return {exp_of(c, exponent), p * where_weighted(p, a - at_least(c, floor))};
}

// Bases are the log-sum-exps here, so p and q are probabilities up to the factors that normalise them.
struct Mixture {
  float teacher_weight;  // beta
  float student_factor;
  float teacher_factor;
};

struct JSDEntry {
  float divergence;  // m * phi(z), never a difference of large terms
  float student_weight;
  float student_log_ratio;  // p * log(p / m)
};

// With z = (q - p) / m: p / m = 1 - beta * z and q / m = 1 + (1 - beta) * z.
struct MixtureRatios {
  float p;
  float q;
  float log_student;  // log(p / m)
  float log_teacher;  // log(q / m)
};

SOD_INLINE MixtureRatios mixture_ratios(float a, float b, Mixture mixture, Exponent exponent) {
  constexpr float kSmallest = 1.17549435e-38f;
  const float beta = mixture.teacher_weight;
  const float p = exp_of(a, exponent) * mixture.student_factor;
  const float q = exp_of(b, exponent) * mixture.teacher_factor;
  const float inverse = 1.0f / ((1.0f - beta) * p + beta * q + kSmallest);
  const float z = (q - p) * inverse;
  return {p, q, log_of_ratio(p * inverse, -beta * z), log_of_ratio(q * inverse, (1.0f - beta) * z)};
}

// beta * KL(q || m) + (1 - beta) * KL(p || m) with m = (1 - beta) * p + beta * q.
SOD_INLINE JSDEntry jsd_entry(float a, float b, Mixture mixture, Exponent exponent) {
  const MixtureRatios r = mixture_ratios(a, b, mixture, exponent);
  const float beta = mixture.teacher_weight;
  const float student_log_ratio = r.p * r.log_student;
  return {(1.0f - beta) * student_log_ratio + beta * (r.q * r.log_teacher), r.p, student_log_ratio};
}

// ---- gradients
// ----------------------------------------------------------------------------------------------

// One row's gradient with respect to the raw student logits. Everything that is the same for the whole row is
// folded into these, so that all upstream gradients together cost two multiply-adds per entry, and two more
// with a reference.
struct GradientRow {
  float student_base;
  float teacher_base;
  float floor;             // under b (reverse KL) or a (forward KL)
  float difference;        // coefficient of the divergence's own term
  float student_log_prob;  // coefficient of a, from the entropy
  float constant;
  Mixture mixture;  // JSD only
};

// The same of KL(p || r), added to the others.
struct ReferenceGradientRow {
  float student_base;
  float reference_base;
  float floor;  // under c
  float difference;
  float constant;
};

// p * (entropy and log-prob terms): all that is left where the divergence has no upstream gradient.
SOD_INLINE float student_gradient(float a, const GradientRow& row, Exponent exponent) {
  const float p = exp_of(a, exponent);
  return p * where_weighted(p, row.student_log_prob * a + row.constant);
}

// p * (f - E f) with f = log p - log q; -E f is in the constant.
SOD_INLINE float reverse_kl_gradient(float a, float b, const GradientRow& row, Exponent exponent) {
  const float p = exp_of(a, exponent);
  const float own = row.student_log_prob * a + row.constant;
  const float value = row.difference * (a - at_least(b, row.floor)) + own;
  return p * where_weighted(p, value);
}

// p * (f - E f) with f = log p - log r; -E f is in the constant.
SOD_INLINE float reference_gradient(float a, float c, const ReferenceGradientRow& row, Exponent exponent) {
  const float p = exp_of(a, exponent);
  return p * where_weighted(p, row.difference * (a - at_least(c, row.floor)) + row.constant);
}

// mass * p - q, with q counted only where log p lies above the floor; the mass is in the constant.
SOD_INLINE float forward_kl_gradient(float a, float b, const GradientRow& row, Exponent exponent) {
  const float p = exp_of(a, exponent);
  const float q = exp_of(b, exponent);
  const float own = p * where_weighted(p, row.student_log_prob * a + row.constant);
  return own - row.difference * (a > row.floor ? q : 0.0f);
}

// p * (f - E f) with f = (1 - beta) * log(p / m).
SOD_INLINE float jsd_gradient(float a, float b, const GradientRow& row, Exponent exponent) {
  const MixtureRatios r = mixture_ratios(a, b, row.mixture, exponent);
  const float own = row.student_log_prob * a + row.constant;
  return r.p * where_weighted(r.p, row.difference * r.log_student + own);
}

}  // namespace sod
