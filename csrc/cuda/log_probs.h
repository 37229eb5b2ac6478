// The log-prob sweeps on CUDA devices, with the promises of cuda/step_kl.h.
#pragma once

#include <cuda_runtime_api.h>

#include "sod/log_probs.h"

namespace sod::cuda {

// Reads each active row once.
cudaError_t log_probs_forward(const LogProbProblem& problem, const LogProbOutputs& outputs,
                              cudaStream_t stream);

// Reads each active row once and writes the gradient once, also over the logits.
cudaError_t log_probs_backward(const LogProbProblem& problem, const LogProbBackwardInputs& inputs,
                               const Gradient& gradient, cudaStream_t stream);

}  // namespace sod::cuda
