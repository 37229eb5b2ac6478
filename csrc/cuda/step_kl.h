// The CUDA library. Everything runs on the caller's stream: no synchronisation, no allocation, capturable in
// a graph. Kernels never use floating-point atomics, so results repeat bit by bit.
#pragma once

#include <cuda_runtime_api.h>

#include "sod/step_kl.h"

namespace sod::cuda {

// Reads each active row pair once; twice for JSD, and the floored side once more with a floor.
cudaError_t forward(const Logits& student, const Logits& teacher, const Problem& problem,
                    const ForwardOutputs& outputs, cudaStream_t stream);

// Reads each active row pair once and writes the gradient once.
cudaError_t backward(const Logits& student, const Logits& teacher, const Problem& problem,
                     const BackwardInputs& inputs, const Gradient& gradient, cudaStream_t stream);

}  // namespace sod::cuda
