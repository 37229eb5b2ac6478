// The operation on raw pointers: what the CPU and the CUDA library both take.
#pragma once

#include <cstdint>

#include "sod/rows.h"

namespace sod {

enum class Divergence : int { kReverseKL = 0, kForwardKL = 1, kJSD = 2 };

struct Problem {
  Rows rows;
  Logits student;
  Logits teacher;
  Logits reference;  // a second target; no data without
  Divergence divergence;
  double beta;                      // weight of the teacher in the JSD mixture
  double min_log_prob;              // -inf for no floor
  const std::int64_t* sampled_ids;  // null without; read at rows of a step only
};

// What the backward sweep needs of a row, over temperature: the columns of RowState in sod_kernels/types.py.
// Doubles, so that what the forward sweep measured is what the backward sweep subtracts.
struct RowState {
  double student_lse;
  double student_entropy;
  double teacher_lse;
  double divergence;     // not clamped; +inf means that the row has no gradient from it
  double aux;            // E f of the gradient p (f - E f); for the forward KL the mass above the floor
  double reference_lse;  // 0 without a reference, like the next
  double reference_kl;   // not clamped
};

// Indexed by row unless said otherwise; null where what it depends on was not given.
struct ForwardOutputs {
  float* token_kl;
  float* token_reference_kl;
  float* student_log_probs;
  float* teacher_log_probs;
  float* student_entropy;
  RowState* row_state;
  double* step_sums;  // (num_steps, kStepColumns)
  std::int64_t num_steps;
};

struct BackwardInputs {
  const float* grad_token_kl;
  const float* grad_token_reference_kl;  // null without a reference
  const float* grad_student_log_probs;   // null without sampled ids
  const float* grad_student_entropy;
  const RowState* row_state;
};

}  // namespace sod
