// Token statistics summed per step.
#pragma once

#include <cmath>
#include <cstdint>

#include "sod/portable.h"
#include "sod/step_kl.h"

namespace sod {

// Tokens, token_kl, |student - teacher| sampled log-ratio, -student_log_probs, student_entropy.
constexpr int kStepColumns = 5;

struct StepSums {
  double values[kStepColumns] = {0, 0, 0, 0, 0};
};

SOD_INLINE void add_token(StepSums& sums, const ForwardOutputs& outputs, std::int64_t row) {
  sums.values[0] += 1;
  sums.values[1] += static_cast<double>(outputs.token_kl[row]);
  if (outputs.student_log_probs != nullptr) {
    const double student = static_cast<double>(outputs.student_log_probs[row]);
    const double teacher = static_cast<double>(outputs.teacher_log_probs[row]);
    sums.values[2] += std::fabs(student - teacher);
    sums.values[3] -= student;
  }
  sums.values[4] += static_cast<double>(outputs.student_entropy[row]);
}

}  // namespace sod
