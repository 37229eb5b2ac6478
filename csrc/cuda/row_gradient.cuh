// The gradient at the rows of one token, or at a block's part of them.
#pragma once

#include <cstdint>

#include "cuda/rows.cuh"
#include "sod/divergence.h"
#include "sod/row_result.h"
#include "sod/step_kl.h"

namespace sod::cuda {

struct Coefficients {
  GradientRow pair;
  ReferenceGradientRow second;
};

// Everything that one entry gets but the one-hot. The logits of targets left out are not looked at.
template <Divergence divergence, bool with_teacher, bool with_reference>
__device__ __forceinline__ float gradient_at(float student, float teacher, float reference,
                                             const Coefficients& row, Exponent exponent) {
  const float a = student - row.pair.student_base;
  const float b = teacher - row.pair.teacher_base;
  float gradient;
  if constexpr (!with_teacher) {
    gradient = student_gradient(a, row.pair, exponent);
  } else if constexpr (divergence == Divergence::kReverseKL) {
    gradient = reverse_kl_gradient(a, b, row.pair, exponent);
  } else if constexpr (divergence == Divergence::kForwardKL) {
    gradient = forward_kl_gradient(a, b, row.pair, exponent);
  } else {
    gradient = jsd_gradient(a, b, row.pair, exponent);
  }
  if constexpr (with_reference) {
    const float c = reference - row.second.reference_base;
    gradient += reference_gradient(a, c, row.second, exponent);
  }
  return gradient;
}

// `out` may be the student's row: an entry is written by the thread that has read it. So the sampled entry,
// which gets more than its pack, is computed before the walk and written after it.
template <Divergence divergence, bool with_teacher, bool with_reference, int width, class Row, class T>
__device__ void sweep_gradient(const RowTriple<Row>& row, T* out, std::int64_t size,
                               const Coefficients& shared_row, std::int64_t sampled_id, float onehot,
                               Exponent exponent) {
  const Coefficients coefficients = shared_row;
  const auto at = [&](float s, float t, float r) {
    return gradient_at<divergence, with_teacher, with_reference>(s, t, r, coefficients, exponent);
  };
  const bool is_sampled = sampled_id >= 0 && threadIdx.x == 0;
  float sampled = onehot;
  if (is_sampled) {
    const float t = with_teacher ? row.teacher.at(sampled_id) : 0.0f;
    const float r = with_reference ? row.reference.at(sampled_id) : 0.0f;
    sampled += at(row.student.at(sampled_id), t, r);
  }
  __syncthreads();
  for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const Pack<T, n> s = row.student.template pack<n>(start);
    Pack<T, n> t, r, gradient;
    if constexpr (with_teacher) t = row.teacher.template pack<n>(start);
    if constexpr (with_reference) r = row.reference.template pack<n>(start);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float teacher = with_teacher ? to_float(t.values[i]) : 0.0f;
      const float reference = with_reference ? to_float(r.values[i]) : 0.0f;
      gradient.values[i] = from_float<T>(at(to_float(s.values[i]), teacher, reference));
    }
    store<T, n>(out + start, gradient);
  });
  __syncthreads();
  if (is_sampled) out[sampled_id] = from_float<T>(sampled);
}

// By one thread: double precision once per row.
__device__ inline Coefficients make_coefficients(const Problem& problem, const RowState& state,
                                                 const Upstream& upstream, bool with_teacher,
                                                 bool with_reference) {
  Coefficients coefficients{};
  coefficients.pair =
      with_teacher ? make_gradient_row(state, upstream, problem)
                   : make_student_gradient_row(state.student_lse, state.student_entropy, upstream.entropy,
                                               upstream.log_prob, problem.rows.temperature);
  if (with_reference) {
    coefficients.second = make_reference_gradient_row(state, upstream.reference_kl, problem);
  }
  return coefficients;
}

// The targets that have a gradient to give.
struct Targets {
  bool teacher;
  bool reference;
};

// Brings a row's coefficients to all threads of the block.
template <bool has_reference>
__device__ __forceinline__ Targets share_coefficients(const Problem& problem, const RowState& state,
                                                      const Upstream& upstream, Coefficients& shared) {
  const Targets targets{has_gradient(upstream.token_kl, state.divergence),
                        has_reference && has_gradient(upstream.reference_kl, state.reference_kl)};
  if (threadIdx.x == 0) {
    shared = make_coefficients(problem, state, upstream, targets.teacher, targets.reference);
  }
  __syncthreads();
  return targets;
}

// Writes `size` entries of a row that something depends on; a target without a gradient is not read.
// `sampled_id` is that of the one-hot, negative where it is not among these entries.
template <Divergence divergence, bool has_reference, int width, class Row, class T>
__device__ __forceinline__ void write_gradient(const RowTriple<Row>& row, T* out, std::int64_t size,
                                               const Targets& targets, const Coefficients& coefficients,
                                               std::int64_t sampled_id, double grad_log_prob,
                                               double temperature) {
  const float onehot = static_cast<float>(grad_log_prob / temperature);
  const Exponent exponent = make_exponent(temperature);
  const auto sweep = [&](auto teacher, auto reference) {
    sweep_gradient<divergence, decltype(teacher)::value, decltype(reference)::value, width>(
        row, out, size, coefficients, sampled_id, onehot, exponent);
  };
  if constexpr (has_reference) {
    if (targets.reference) {
      targets.teacher ? sweep(Flag<true>{}, Flag<true>{}) : sweep(Flag<false>{}, Flag<true>{});
    } else {
      targets.teacher ? sweep(Flag<true>{}, Flag<false>{}) : sweep(Flag<false>{}, Flag<false>{});
    }
  } else {
    targets.teacher ? sweep(Flag<true>{}, Flag<false>{}) : sweep(Flag<false>{}, Flag<false>{});
  }
}

}  // namespace sod::cuda
