// The sweeps over units: one unit, or one student row, per thread at a time, the same bits with any number of
// threads.
#pragma once

#include "sod/rows.h"
#include "sod/unit_kl.h"

namespace sod::cpu {

// Reads the shared columns of each compared unit once. Allocates one row of floats per side and thread.
void unit_forward(const UnitProblem& problem, const UnitOutputs& outputs, int num_threads);

// Reads the shared columns once more, the whole row where it has a dense term, and writes the gradient once.
// Allocates one more row of floats per thread.
void unit_backward(const UnitProblem& problem, const UnitBackwardInputs& inputs, const Gradient& gradient,
                   int num_threads);

}  // namespace sod::cpu
