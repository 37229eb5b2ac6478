// What the sweeps over rows do with one pair of rows, for sweeps that bring their own: floats, without a
// reference.
#pragma once

#include <cstdint>

#include "sod/divergence.h"
#include "sod/step_kl.h"

namespace sod::cpu {

// The state of a pair of `problem.rows.vocab_size` entries; of the problem only options are read.
RowState pair_state(const float* student, const float* teacher, const Problem& problem, Exponent exponent);

// The gradient of the divergence at n entries.
void pair_gradients(const float* student, const float* teacher, float* gradient, std::int64_t n,
                    Divergence divergence, const GradientRow& row, Exponent exponent);

}  // namespace sod::cpu
