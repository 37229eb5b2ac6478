// The CPU library: one row per thread at a time, the same bits with any number of threads.
#pragma once

#include "sod/step_kl.h"

namespace sod::cpu {

// Reads each active row once; student and teacher twice for JSD, and every floored side once more with a
// floor. Allocates nothing.
void forward(const Problem& problem, const ForwardOutputs& outputs, int num_threads);

// Reads each active row once and writes the gradient once, also over the student's logits. Allocates nothing.
void backward(const Problem& problem, const BackwardInputs& inputs, const Gradient& gradient,
              int num_threads);

// Both, one row after the other: the same bits as `forward` and then `backward`, but what the gradient of a
// row reads is still in the cache. `inputs.row_state` is `outputs.row_state`.
void forward_backward(const Problem& problem, const BackwardInputs& inputs, const ForwardOutputs& outputs,
                      const Gradient& gradient, int num_threads);

// Sums what `outputs` holds of the tokens of each step. One thread, in the order of the tokens: cheap beside
// the sweeps, and the same bits every time.
void sum_steps(const std::int64_t* step_ids, std::int64_t num_tokens, const ForwardOutputs& outputs);

// False where the library was built without OpenMP: every call then runs on one thread.
bool has_threads();

}  // namespace sod::cpu
