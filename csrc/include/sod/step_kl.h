// The operation on raw pointers: what the CPU and the CUDA library both take.
//
// N = batch * time rows of logits; a row whose step id is negative belongs to no step: it is not read, and
// gets 0. Rows are contiguous; `batch` and `time` have strides of their own, so a view that drops the last
// position of every sequence needs no copy. Token arrays are dense (batch, time).
#pragma once

#include <cstdint>

#include "sod/number.h"
#include "sod/portable.h"

namespace sod {

enum class Divergence : int { kReverseKL = 0, kForwardKL = 1, kJSD = 2 };

struct Logits {
  const void* data;
  std::int64_t stride_batch;  // in elements
  std::int64_t stride_time;
};

struct Problem {
  DType dtype;
  std::int64_t batch;
  std::int64_t time;
  std::int64_t vocab_size;  // columns at and beyond it are never read
  Divergence divergence;
  double beta;  // weight of the teacher in the JSD mixture
  double temperature;
  double min_log_prob;  // -inf for no floor
  const std::int64_t* step_ids;
  const std::int64_t* sampled_ids;  // null without; read at rows of a step only
};

// Indexed by row unless said otherwise. The sampled log-probs are not written without sampled ids.
struct ForwardOutputs {
  float* token_kl;
  float* student_log_probs;
  float* teacher_log_probs;
  float* student_entropy;
  float* student_lse;
  float* teacher_lse;
  float* kl_aux;
  double* step_sums;  // (num_steps, kStepColumns)
  std::int64_t num_steps;
};

struct BackwardInputs {
  const float* grad_token_kl;
  const float* grad_student_log_probs;  // not read without sampled ids
  const float* grad_student_entropy;
  const float* student_lse;
  const float* teacher_lse;
  const float* kl_aux;
  const float* student_entropy;
};

struct Gradient {
  void* data;          // dense (batch, time, width), the dtype of the logits
  std::int64_t width;  // at least vocab_size; the rest becomes 0
};

template <class T>
SOD_INLINE const T* row_of(const Logits& logits, const Problem& problem, std::int64_t row) {
  const std::int64_t sequence = row / problem.time;
  const std::int64_t position = row % problem.time;
  return static_cast<const T*>(logits.data) + sequence * logits.stride_batch + position * logits.stride_time;
}

}  // namespace sod
