// What the sweeps over rows do with one row: of a problem, or one that the caller brings.
#pragma once

#include <cstdint>

#include "sod/divergence.h"
#include "sod/step_kl.h"

namespace sod::cpu {

// The forward sweep at one row of a problem.
void measure_row(const Problem& problem, const ForwardOutputs& outputs, std::int64_t row, Exponent exponent);

// A pair of rows that the caller brings: floats, without a reference. The state of its
// `problem.rows.vocab_size` entries; of the problem only options are read.
RowState pair_state(const float* student, const float* teacher, const Problem& problem, Exponent exponent);

// The gradient of its divergence at n entries.
void pair_gradients(const float* student, const float* teacher, float* gradient, std::int64_t n,
                    Divergence divergence, const GradientRow& row, Exponent exponent);

}  // namespace sod::cpu
