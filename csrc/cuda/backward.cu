#include "cuda/rows.cuh"
#include "cuda/step_kl.h"
#include "sod/row_result.h"

namespace sod::cuda {
namespace {

// ---- kernels
// ------------------------------------------------------------------------------------------------

template <int width, class T>
__device__ Normaliser restore_normaliser(float log_sum_exp, const T* row, const Problem& problem,
                                         Exponent exponent, Shared& shared) {
  if (!needs_remeasure(log_sum_exp)) return saved_normaliser(log_sum_exp, problem.temperature);
  const SoftmaxState<double> state = sweep_softmax<width>(row, problem.vocab_size, exponent, shared);
  return remeasured(log_sum_exp, state, problem.temperature);
}

template <Divergence divergence>
__device__ __forceinline__ float gradient_of(float a, float b, const GradientRow& row, Exponent exponent) {
  if constexpr (divergence == Divergence::kReverseKL) return reverse_kl_gradient(a, b, row, exponent);
  if constexpr (divergence == Divergence::kForwardKL) return forward_kl_gradient(a, b, row, exponent);
  return jsd_gradient(a, b, row, exponent);
}

template <Divergence divergence, int width, class T>
__device__ void sweep_gradient(const T* student, const T* teacher, T* out, std::int64_t size,
                               const GradientRow& row, bool with_divergence, Exponent exponent) {
  if (with_divergence) {
    for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
      constexpr int n = decltype(entries)::value;
      const Pack<T, n> s = load<T, n>(student + start);
      const Pack<T, n> t = load<T, n>(teacher + start);
      Pack<T, n> gradient;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float a = to_float(s.values[i]) - row.student_base;
        const float b = to_float(t.values[i]) - row.teacher_base;
        gradient.values[i] = from_float<T>(gradient_of<divergence>(a, b, row, exponent));
      }
      store<T, n>(out + start, gradient);
    });
  } else {
    for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
      constexpr int n = decltype(entries)::value;
      const Pack<T, n> s = load<T, n>(student + start);
      Pack<T, n> gradient;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float a = to_float(s.values[i]) - row.student_base;
        gradient.values[i] = from_float<T>(student_gradient(a, row, exponent));
      }
      store<T, n>(out + start, gradient);
    });
  }
}

template <int width, class T>
__device__ void fill_zeros(T* out, std::int64_t size) {
  for_each_pack<width>(size, [&](std::int64_t start, auto entries) {
    constexpr int n = decltype(entries)::value;
    Pack<T, n> zeros;
#pragma unroll
    for (int i = 0; i < n; ++i) zeros.values[i] = from_float<T>(0.0f);
    store<T, n>(out + start, zeros);
  });
}

// One block per row. Reads the row pair once and writes the gradient once; rows of no step, and rows that
// nothing depends on, are only written.
template <class T, Divergence divergence, int width>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    backward_kernel(Logits student_logits, Logits teacher_logits, Problem problem, BackwardInputs inputs,
                    Gradient gradient) {
  __shared__ Shared shared;
  const std::int64_t row = blockIdx.x;
  T* out = static_cast<T*>(gradient.data) + row * gradient.width;
  Upstream upstream{0, 0, 0};
  if (problem.step_ids[row] >= 0) {
    upstream.token_kl = static_cast<double>(inputs.grad_token_kl[row]);
    upstream.entropy = static_cast<double>(inputs.grad_student_entropy[row]);
    if (problem.sampled_ids != nullptr) {
      upstream.log_prob = static_cast<double>(inputs.grad_student_log_probs[row]);
    }
  }
  if (upstream.token_kl == 0 && upstream.entropy == 0 && upstream.log_prob == 0) {
    fill_zeros<width>(out, gradient.width);
    return;
  }
  const T* student = row_of<T>(student_logits, problem, row);
  const T* teacher = row_of<T>(teacher_logits, problem, row);
  const Exponent exponent = make_exponent(problem.temperature);
  const double kl_aux = static_cast<double>(inputs.kl_aux[row]);
  const bool with_divergence = has_divergence_gradient(upstream.token_kl, kl_aux);
  SavedRow saved{restore_normaliser<width>(inputs.student_lse[row], student, problem, exponent, shared),
                 saved_normaliser(0.0f, 1.0), kl_aux, static_cast<double>(inputs.student_entropy[row])};
  if (with_divergence) {
    saved.teacher = restore_normaliser<width>(inputs.teacher_lse[row], teacher, problem, exponent, shared);
  }
  // Double precision once per row, by one thread; the others need only its floats.
  __shared__ GradientRow shared_coefficients;
  if (threadIdx.x == 0) shared_coefficients = make_gradient_row(saved, upstream, with_divergence, problem);
  __syncthreads();
  const GradientRow coefficients = shared_coefficients;
  sweep_gradient<divergence, width>(student, teacher, out, problem.vocab_size, coefficients, with_divergence,
                                    exponent);
  for (std::int64_t i = problem.vocab_size + threadIdx.x; i < gradient.width; i += kThreads) {
    out[i] = from_float<T>(0.0f);
  }
  if (upstream.log_prob == 0) return;
  // The sampled column once more, unrounded, by one thread after the block has written it.
  __syncthreads();
  if (threadIdx.x != 0) return;
  const std::int64_t id = problem.sampled_ids[row];
  const float a = to_float(student[id]) - coefficients.student_base;
  const float b = with_divergence ? to_float(teacher[id]) - coefficients.teacher_base : 0.0f;
  const float shared_part = with_divergence ? gradient_of<divergence>(a, b, coefficients, exponent)
                                            : student_gradient(a, coefficients, exponent);
  out[id] = from_float<T>(shared_part + static_cast<float>(upstream.log_prob / problem.temperature));
}

// ---- launchers
// ----------------------------------------------------------------------------------------------

template <class T, Divergence divergence>
void launch(const Logits& student, const Logits& teacher, const Problem& problem,
            const BackwardInputs& inputs, const Gradient& gradient, cudaStream_t stream) {
  const unsigned rows = static_cast<unsigned>(problem.batch * problem.time);
  if (is_aligned<T>(student.data, student.stride_batch, student.stride_time) &&
      is_aligned<T>(teacher.data, teacher.stride_batch, teacher.stride_time) &&
      is_aligned<T>(gradient.data, 0, gradient.width)) {
    backward_kernel<T, divergence, kPackWidth<T>>
        <<<rows, kThreads, 0, stream>>>(student, teacher, problem, inputs, gradient);
  } else {
    backward_kernel<T, divergence, 1>
        <<<rows, kThreads, 0, stream>>>(student, teacher, problem, inputs, gradient);
  }
}

template <class T>
void launch(const Logits& student, const Logits& teacher, const Problem& problem,
            const BackwardInputs& inputs, const Gradient& gradient, cudaStream_t stream) {
  switch (problem.divergence) {
    case Divergence::kReverseKL:
      return launch<T, Divergence::kReverseKL>(student, teacher, problem, inputs, gradient, stream);
    case Divergence::kForwardKL:
      return launch<T, Divergence::kForwardKL>(student, teacher, problem, inputs, gradient, stream);
    case Divergence::kJSD:
      return launch<T, Divergence::kJSD>(student, teacher, problem, inputs, gradient, stream);
  }
}

}  // namespace

cudaError_t backward(const Logits& student, const Logits& teacher, const Problem& problem,
                     const BackwardInputs& inputs, const Gradient& gradient, cudaStream_t stream) {
  if (problem.batch * problem.time == 0) return cudaSuccess;
  switch (problem.dtype) {
    case DType::kFloat32:
      launch<float>(student, teacher, problem, inputs, gradient, stream);
      break;
    case DType::kBFloat16:
      launch<__nv_bfloat16>(student, teacher, problem, inputs, gradient, stream);
      break;
    case DType::kFloat16:
      launch<__half>(student, teacher, problem, inputs, gradient, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace sod::cuda
