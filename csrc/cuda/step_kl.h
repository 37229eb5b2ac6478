// The CUDA library. Everything runs on the caller's stream: no synchronisation, no allocation, capturable in
// a graph. Kernels never use floating-point atomics, so results repeat bit by bit.
#pragma once

#include <cuda_runtime_api.h>

#include "sod/step_kl.h"

namespace sod::cuda {

// Reads each active row once; student and teacher twice for JSD, and every floored side once more with a
// floor.
cudaError_t forward(const Problem& problem, const ForwardOutputs& outputs, cudaStream_t stream);

// Reads each active row once and writes the gradient once, also over the student's logits.
cudaError_t backward(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
                     cudaStream_t stream);

// What `forward` and then `backward` do, whose `inputs.row_state` is `outputs.row_state`. On cards of compute
// capability 9.0 and later a cluster of blocks keeps each row on the chip where it can: reads each active row
// once and writes the gradient once, also over the student's logits.
cudaError_t forward_backward(const Problem& problem, const BackwardInputs& inputs,
                             const ForwardOutputs& outputs, const Gradient& gradient, cudaStream_t stream);

}  // namespace sod::cuda
