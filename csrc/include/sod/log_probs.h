// Log-probabilities of K ids per row and the entropy, of the student alone: what both libraries take.
#pragma once

#include <cstdint>

#include "sod/rows.h"

namespace sod {

struct LogProbProblem {
  Rows rows;
  Logits student;
  const std::int64_t* ids;  // (rows, num_ids); a negative id is absent; rows in no step are not read
  std::int64_t num_ids;
};

// The columns STUDENT_LSE and STUDENT_ENTROPY of RowState.
struct LogProbState {
  double student_lse;
  double student_entropy;
};

struct LogProbOutputs {
  float* log_probs;  // (rows, num_ids), 0 at absent ids
  float* student_entropy;
  LogProbState* row_state;
};

struct LogProbBackwardInputs {
  const float* grad_log_probs;  // (rows, num_ids), anything at absent ids
  const float* grad_student_entropy;
  const LogProbState* row_state;
  float* picked;  // (rows, num_ids), contents undefined: for the CUDA kernel's own use; null on the CPU
};

}  // namespace sod
