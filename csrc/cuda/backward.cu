#include "cuda/rows.cuh"
#include "cuda/step_kl.h"
#include "sod/row_result.h"

namespace sod::cuda {
namespace {

// ---- kernels
// ------------------------------------------------------------------------------------------------

// The rows of one token whose gradient is wanted; null where a target has no gradient to give.
template <class T>
struct RowTriple {
  const T* student;
  const T* teacher;
  const T* reference;
};

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
template <Divergence divergence, bool with_teacher, bool with_reference, int width, class T>
__device__ void sweep_gradient(const RowTriple<T>& row, T* out, std::int64_t size,
                               const Coefficients& shared_row, std::int64_t sampled_id, float onehot,
                               Exponent exponent) {
  const Coefficients coefficients = shared_row;
  const auto at = [&](float s, float t, float r) {
    return gradient_at<divergence, with_teacher, with_reference>(s, t, r, coefficients, exponent);
  };
  const bool is_sampled = sampled_id >= 0 && threadIdx.x == 0;
  float sampled = onehot;
  if (is_sampled) {
    const float t = with_teacher ? to_float(row.teacher[sampled_id]) : 0.0f;
    const float r = with_reference ? to_float(row.reference[sampled_id]) : 0.0f;
    sampled += at(to_float(row.student[sampled_id]), t, r);
  }
  __syncthreads();
  for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    const Pack<T, n> s = load<T, n>(row.student + start);
    Pack<T, n> t, r, gradient;
    if constexpr (with_teacher) t = load<T, n>(row.teacher + start);
    if constexpr (with_reference) r = load<T, n>(row.reference + start);
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
__device__ Coefficients make_coefficients(const Problem& problem, const RowState& state,
                                          const Upstream& upstream, bool with_teacher, bool with_reference) {
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

// One block per row. Reads each row once and writes the gradient once; rows of no step, and rows that nothing
// depends on, are only written, and a target without a gradient is not read.
template <class T, Divergence divergence, bool has_reference, int width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    backward_kernel(Problem problem, BackwardInputs inputs, Gradient gradient) {
  const std::int64_t row = blockIdx.x;
  T* out = row_of<T>(gradient, row);
  const Upstream upstream = read_upstream(inputs, problem.rows.step_ids[row] >= 0, row);
  if (is_zero(upstream)) {
    fill_zeros<width>(out, gradient.width);
    return;
  }
  const RowState& state = inputs.row_state[row];
  const bool with_teacher = has_gradient(upstream.token_kl, state.divergence);
  const bool with_reference = has_reference && has_gradient(upstream.reference_kl, state.reference_kl);
  Coefficients& coefficients = shared_memory<Coefficients>();
  if (threadIdx.x == 0) {
    coefficients = make_coefficients(problem, state, upstream, with_teacher, with_reference);
  }
  __syncthreads();
  RowTriple<T> logits{row_of<T>(problem.student, problem.rows, row),
                      row_of<T>(problem.teacher, problem.rows, row), nullptr};
  if constexpr (has_reference) logits.reference = row_of<T>(problem.reference, problem.rows, row);
  const std::int64_t size = problem.rows.vocab_size;
  const std::int64_t sampled_id = upstream.log_prob != 0 ? problem.sampled_ids[row] : -1;
  const float onehot = static_cast<float>(upstream.log_prob / problem.rows.temperature);
  const Exponent exponent = make_exponent(problem.rows.temperature);
  const auto sweep = [&](auto teacher, auto reference) {
    sweep_gradient<divergence, decltype(teacher)::value, decltype(reference)::value, width>(
        logits, out, size, coefficients, sampled_id, onehot, exponent);
  };
  if constexpr (has_reference) {
    if (with_reference) {
      with_teacher ? sweep(Flag<true>{}, Flag<true>{}) : sweep(Flag<false>{}, Flag<true>{});
    } else {
      with_teacher ? sweep(Flag<true>{}, Flag<false>{}) : sweep(Flag<false>{}, Flag<false>{});
    }
  } else {
    with_teacher ? sweep(Flag<true>{}, Flag<false>{}) : sweep(Flag<false>{}, Flag<false>{});
  }
  for (std::int64_t i = size + threadIdx.x; i < gradient.width; i += kThreads) out[i] = from_float<T>(0.0f);
}

// ---- launchers
// ----------------------------------------------------------------------------------------------

template <class T, Divergence divergence, bool has_reference>
void launch(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
            cudaStream_t stream) {
  const std::int64_t rows = problem.rows.count();
  if (is_aligned<T>(problem.student) && is_aligned<T>(problem.teacher) && is_aligned<T>(problem.reference) &&
      is_aligned<T>(gradient)) {
    launch_blocks<backward_kernel<T, divergence, has_reference, kPackWidth<T>>>(rows, stream, problem, inputs,
                                                                                gradient);
  } else {
    launch_blocks<backward_kernel<T, divergence, has_reference, 1>>(rows, stream, problem, inputs, gradient);
  }
}

template <class T, Divergence divergence>
void launch(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
            cudaStream_t stream) {
  if (problem.reference.data != nullptr) {
    launch<T, divergence, true>(problem, inputs, gradient, stream);
  } else {
    launch<T, divergence, false>(problem, inputs, gradient, stream);
  }
}

template <class T>
void launch(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
            cudaStream_t stream) {
  switch (problem.divergence) {
    case Divergence::kReverseKL:
      return launch<T, Divergence::kReverseKL>(problem, inputs, gradient, stream);
    case Divergence::kForwardKL:
      return launch<T, Divergence::kForwardKL>(problem, inputs, gradient, stream);
    case Divergence::kJSD:
      return launch<T, Divergence::kJSD>(problem, inputs, gradient, stream);
  }
}

}  // namespace

cudaError_t backward(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
                     cudaStream_t stream) {
  if (problem.rows.count() == 0) return cudaSuccess;
  with_row_type(problem.rows.dtype, [&](auto* type) {
    launch<std::remove_pointer_t<decltype(type)>>(problem, inputs, gradient, stream);
  });
  return cudaGetLastError();
}

}  // namespace sod::cuda
