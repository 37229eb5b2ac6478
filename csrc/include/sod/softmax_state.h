// What one sweep over a row pair knows so far, and how two such states become one.
//
// Every sum is kept relative to the largest entries seen ("bases"), so that neither a large logit nor a shift
// of a whole row costs accuracy, and entries of a row can be visited in any grouping: rebase both states to
// the larger bases, then add. Merging is associative and has the empty state as its neutral element.
#pragma once

#include <cmath>

#include "sod/exp2.h"
#include "sod/portable.h"

namespace sod {

constexpr float kInfinity = __builtin_inff();

// The distribution that a divergence takes its expectation under.
enum class WeightedBy { kStudent, kTeacher };

// a = student logit - its base, b = teacher logit - its base; sums over the entries seen, in units of raw
// logits.
template <class Real>
struct PairState {
  float student_max = -kInfinity;
  float teacher_max = -kInfinity;
  Real student_sum = 0;     // sum exp(a / temperature)
  Real teacher_sum = 0;     // sum exp(b / temperature)
  Real student_moment = 0;  // sum exp(a / temperature) * a
  Real difference = 0;      // sum weight * (own - other), by student: exp(a / temperature) * (a - b)
  Real above_floor = 0;     // sum of the weights of entries whose other side lies above the floor
};

// Rows that start with -inf only have no largest entry yet; 0 serves as well as any base there.
SOD_INLINE float base_of(float largest) {
  return largest == -kInfinity ? 0.0f : largest;
}

template <class Real>
SOD_INLINE Real rescale_factor(float from, float to, Exponent exponent) {
  if (from == to) return 1;
  return std::exp2((static_cast<Real>(from) - static_cast<Real>(to)) *
                   static_cast<Real>(exponent.log2_scale));
}

// Moves the bases up to `student_max` and `teacher_max`, which must not lie below the state's own.
template <WeightedBy weighting, class Real>
SOD_INLINE void rebase(PairState<Real>& state, float student_max, float teacher_max, Exponent exponent) {
  if (state.student_max == student_max && state.teacher_max == teacher_max) return;
  const Real student_shift =
      static_cast<Real>(base_of(state.student_max)) - static_cast<Real>(base_of(student_max));
  const Real teacher_shift =
      static_cast<Real>(base_of(state.teacher_max)) - static_cast<Real>(base_of(teacher_max));
  const Real student_factor = rescale_factor<Real>(state.student_max, student_max, exponent);
  const Real teacher_factor = rescale_factor<Real>(state.teacher_max, teacher_max, exponent);
  constexpr bool by_student = weighting == WeightedBy::kStudent;
  const Real weight_factor = by_student ? student_factor : teacher_factor;
  const Real weight_sum = by_student ? state.student_sum : state.teacher_sum;
  const Real shift = by_student ? student_shift - teacher_shift : teacher_shift - student_shift;
  // An infinite divergence stays so, also when the factor has become 0.
  if (state.difference != static_cast<Real>(kInfinity)) {
    state.difference = (state.difference + shift * weight_sum) * weight_factor;
  }
  state.above_floor *= weight_factor;
  state.student_moment = (state.student_moment + student_shift * state.student_sum) * student_factor;
  state.student_sum *= student_factor;
  state.teacher_sum *= teacher_factor;
  state.student_max = student_max;
  state.teacher_max = teacher_max;
}

// NaN never becomes a base: it shows in the sums.
SOD_INLINE float larger(float x, float y) {
  return x > y ? x : y;
}

// `other` must already have the bases of `state`.
template <class Real, class OtherReal>
SOD_INLINE void add(PairState<Real>& state, const PairState<OtherReal>& other) {
  state.student_sum += static_cast<Real>(other.student_sum);
  state.teacher_sum += static_cast<Real>(other.teacher_sum);
  state.student_moment += static_cast<Real>(other.student_moment);
  state.difference += static_cast<Real>(other.difference);
  state.above_floor += static_cast<Real>(other.above_floor);
}

template <WeightedBy weighting, class Real>
SOD_INLINE PairState<Real> merge(PairState<Real> x, PairState<Real> y, Exponent exponent) {
  const float student_max = larger(x.student_max, y.student_max);
  const float teacher_max = larger(x.teacher_max, y.teacher_max);
  rebase<weighting>(x, student_max, teacher_max, exponent);
  rebase<weighting>(y, student_max, teacher_max, exponent);
  add(x, y);
  return x;
}

// A second target beside a pair: KL(student || reference), whose student sums the pair has.
template <class Real>
struct ReferenceState {
  float max = -kInfinity;
  Real sum = 0;         // sum exp(c / temperature), c = reference logit - its base
  Real difference = 0;  // sum exp(a / temperature) * (a - c)
};

// Moves the bases up to the pair's next `student_max` and to `max`. Goes before the pair's own rebase, for
// the pair's sum must still be that of the old base.
template <class Real>
SOD_INLINE void rebase(ReferenceState<Real>& state, const PairState<Real>& pair, float student_max, float max,
                       Exponent exponent) {
  if (pair.student_max == student_max && state.max == max) return;
  const Real student_shift =
      static_cast<Real>(base_of(pair.student_max)) - static_cast<Real>(base_of(student_max));
  const Real shift = static_cast<Real>(base_of(state.max)) - static_cast<Real>(base_of(max));
  // An infinite divergence stays so, also when the factor has become 0.
  if (state.difference != static_cast<Real>(kInfinity)) {
    state.difference = (state.difference + (student_shift - shift) * pair.student_sum) *
                       rescale_factor<Real>(pair.student_max, student_max, exponent);
  }
  state.sum *= rescale_factor<Real>(state.max, max, exponent);
  state.max = max;
}

// One row alone.
template <class Real>
struct SoftmaxState {
  float max = -kInfinity;
  Real sum = 0;     // sum exp(a / temperature)
  Real moment = 0;  // sum exp(a / temperature) * a
};

template <class Real>
SOD_INLINE void rebase(SoftmaxState<Real>& state, float max, Exponent exponent) {
  if (state.max == max) return;
  const Real shift = static_cast<Real>(base_of(state.max)) - static_cast<Real>(base_of(max));
  const Real factor = rescale_factor<Real>(state.max, max, exponent);
  state.moment = (state.moment + shift * state.sum) * factor;
  state.sum *= factor;
  state.max = max;
}

template <class Real>
SOD_INLINE SoftmaxState<Real> merge(SoftmaxState<Real> x, SoftmaxState<Real> y, Exponent exponent) {
  const float max = larger(x.max, y.max);
  rebase(x, max, exponent);
  rebase(y, max, exponent);
  x.sum += y.sum;
  x.moment += y.moment;
  return x;
}

}  // namespace sod
