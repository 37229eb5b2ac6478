// The log-prob sweeps on the CPU, with the promises of cpu/step_kl.h.
#pragma once

#include "sod/log_probs.h"

namespace sod::cpu {

// Reads each active row once. Allocates nothing.
void log_probs_forward(const LogProbProblem& problem, const LogProbOutputs& outputs, int num_threads);

// Reads each active row once and writes the gradient once, also over the logits. Allocates room for the ids
// of one row per thread.
void log_probs_backward(const LogProbProblem& problem, const LogProbBackwardInputs& inputs,
                        const Gradient& gradient, int num_threads);

}  // namespace sod::cpu
