// What the forward sweep learns of the rows of one token. The threads of a team walk over them together:
//
//   team.for_each_pack(visit)  calls visit(start, Width) for this thread's packs of what the team's block has
//   team.reduce_max(values)    every thread of the team gets the largest, value by value
//   team.reduce_sum(values)    likewise the sums, added up in the same order every time
#pragma once

#include <cstdint>

#include "cuda/rows.cuh"
#include "sod/divergence.h"
#include "sod/row_result.h"
#include "sod/step_kl.h"

namespace sod::cuda {

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
template <class Row, class Team>
__device__ double find_floor(const Row& row, const Problem& problem, Exponent exponent, Team& team) {
  if (problem.min_log_prob == -static_cast<double>(kInfinity)) return problem.min_log_prob;
  const double temperature = problem.rows.temperature;
  const SoftmaxState<double> state = sweep_softmax(row, exponent, team);
  return floor_in_logits(log_sum_exp_of(state.max, state.sum, temperature), problem.min_log_prob,
                         temperature);
}

// Brings all threads to the row's largest entries, then adds. The reference goes before the pair.
template <WeightedBy weighting, bool has_reference, class Team>
__device__ Sums reduce(PairState<float> pair, ReferenceState<float> second, Exponent exponent, Team& team) {
  constexpr bool has_mass = weighting == WeightedBy::kTeacher;
  Sums sums;
  if constexpr (has_reference) {
    float maxima[] = {pair.student_max, pair.teacher_max, second.max};
    team.reduce_max(maxima);
    rebase(second, pair, maxima[0], maxima[2], exponent);
    rebase<weighting>(pair, maxima[0], maxima[1], exponent);
  } else {
    float maxima[] = {pair.student_max, pair.teacher_max};
    team.reduce_max(maxima);
    rebase<weighting>(pair, maxima[0], maxima[1], exponent);
  }
  double values[4 + has_mass + 2 * has_reference] = {pair.student_sum, pair.teacher_sum, pair.student_moment,
                                                     pair.difference};
  if constexpr (has_mass) values[4] = pair.above_floor;
  if constexpr (has_reference) {
    values[4 + has_mass] = second.sum;
    values[5 + has_mass] = second.difference;
  }
  team.reduce_sum(values);
  sums.pair = {pair.student_max, pair.teacher_max, values[0], values[1], values[2], values[3]};
  if constexpr (has_mass) sums.pair.above_floor = values[4];
  if constexpr (has_reference) sums.reference = {second.max, values[4 + has_mass], values[5 + has_mass]};
  return sums;
}

template <class T, int n>
__device__ __forceinline__ float largest(const Pack<T, n>& pack, float max) {
#pragma unroll
  for (int i = 0; i < n; ++i) max = larger(max, to_float(pack.values[i]));
  return max;
}

// One walk with running maxima per thread.
template <WeightedBy weighting, bool has_reference, class Row, class Team>
__device__ Sums sweep(const RowTriple<Row>& row, const Floors& floors, Exponent exponent, Team& team) {
  PairState<float> pair;
  ReferenceState<float> second;
  team.for_each_pack([&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const auto s = row.student.template pack<n>(start);
    const auto t = row.teacher.template pack<n>(start);
    [[maybe_unused]] auto r = s;
    const float student_max = largest(s, pair.student_max);
    [[maybe_unused]] float reference_base = 0, reference_floor = 0;
    if constexpr (has_reference) {
      r = row.reference.template pack<n>(start);
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
  return reduce<weighting, has_reference>(pair, second, exponent, team);
}

template <WeightedBy weighting, bool has_reference, class Row, class Team>
__device__ RowState kl_row(const RowTriple<Row>& row, const Problem& problem, Exponent exponent, Team& team) {
  const Row& floored = weighting == WeightedBy::kStudent ? row.teacher : row.student;
  Floors floors{find_floor(floored, problem, exponent, team), 0};
  if constexpr (has_reference) floors.reference = find_floor(row.reference, problem, exponent, team);
  const Sums sums = sweep<weighting, has_reference>(row, floors, exponent, team);
  const double temperature = problem.rows.temperature;
  RowState state = finish_kl(sums.pair, problem.divergence, temperature);
  if constexpr (has_reference) {
    finish_reference(state, sums.reference, sums.pair.student_sum, temperature);
  }
  return state;
}

// The student's sums; with a reference their pair is that of a reverse KL, in the same walk.
template <bool has_reference, class Row, class Team>
__device__ RowState student_row(const RowTriple<Row>& row, const Problem& problem, Exponent exponent,
                                Team& team) {
  const double temperature = problem.rows.temperature;
  if constexpr (has_reference) {
    const Floors floors{find_floor(row.reference, problem, exponent, team), 0};
    const RowTriple<Row> pair{row.student, row.reference, {}};
    const PairState<double> sums = sweep<WeightedBy::kStudent, false>(pair, floors, exponent, team).pair;
    RowState state = finish_softmax({sums.student_max, sums.student_sum, sums.student_moment}, temperature);
    finish_reference(state, {sums.teacher_max, sums.teacher_sum, sums.difference}, sums.student_sum,
                     temperature);
    return state;
  } else {
    return finish_softmax(sweep_softmax(row.student, exponent, team), temperature);
  }
}

// The mixture needs both log-sum-exps before its first entry.
template <bool has_reference, class Row, class Team>
__device__ RowState jsd_row(const RowTriple<Row>& row, const Problem& problem, Exponent exponent,
                            Team& team) {
  const double temperature = problem.rows.temperature;
  RowState state = student_row<has_reference>(row, problem, exponent, team);
  const SoftmaxState<double> teacher_sums = sweep_softmax(row.teacher, exponent, team);
  state.teacher_lse = log_sum_exp_of(teacher_sums.max, teacher_sums.sum, temperature);
  const Normaliser student = make_normaliser(state.student_lse, temperature);
  const Normaliser teacher = make_normaliser(state.teacher_lse, temperature);
  const Mixture mixture = make_mixture(problem.beta, student, teacher);
  float divergence = 0, student_weight = 0, student_log_ratio = 0;
  team.for_each_pack([&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const auto s = row.student.template pack<n>(start);
    const auto t = row.teacher.template pack<n>(start);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const JSDEntry entry = jsd_entry(to_float(s.values[i]) - student.base,
                                       to_float(t.values[i]) - teacher.base, mixture, exponent);
      divergence += entry.divergence;
      student_weight += entry.student_weight;
      student_log_ratio += entry.student_log_ratio;
    }
  });
  double sums[] = {static_cast<double>(divergence), static_cast<double>(student_weight),
                   static_cast<double>(student_log_ratio)};
  team.reduce_sum(sums);
  finish_jsd(state, {sums[0], sums[1], sums[2]}, problem.beta);
  return state;
}

// Every thread of the team gets the same bits. Reads each row once; student and teacher twice for the JSD,
// and every floored side once more with a floor.
template <Divergence divergence, bool has_reference, class Row, class Team>
__device__ __forceinline__ RowState measure_row(const RowTriple<Row>& row, const Problem& problem,
                                                Exponent exponent, Team& team) {
  if constexpr (divergence == Divergence::kReverseKL) {
    return kl_row<WeightedBy::kStudent, has_reference>(row, problem, exponent, team);
  } else if constexpr (divergence == Divergence::kForwardKL) {
    return kl_row<WeightedBy::kTeacher, has_reference>(row, problem, exponent, team);
  } else {
    return jsd_row<has_reference>(row, problem, exponent, team);
  }
}

}  // namespace sod::cuda
