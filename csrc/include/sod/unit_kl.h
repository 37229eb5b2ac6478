// Divergence over the columns that two vocabularies share, one row per unit: what the CPU library takes.
//
// A unit's row is its shared columns, gathered from one row of logits on each side, and behind them the span
// column, whose score comes from outside; a unit without a span column has -inf there on both sides, which
// contributes exactly 0. A student row belongs to one unit at most, so the gradient needs no atomics.
#pragma once

#include <cstdint>

#include "sod/number.h"
#include "sod/step_kl.h"

namespace sod {

struct UnitSide {
  const void* data;             // rows of logits; columns are contiguous
  std::int64_t stride;          // between rows, in elements
  std::int64_t width;           // of a row, in elements; beyond it nothing is read
  const std::int32_t* columns;  // (num_columns) for all units, or one list per unit
  const std::int64_t* rows;     // (num_units): the first row of each unit
};

struct UnitProblem {
  DType dtype;
  std::int64_t num_units;
  std::int64_t num_columns;
  std::int64_t stride_columns;  // between the lists of two units; 0 where all share one
  UnitSide student;             // columns ascend; a negative row means that the unit is not compared
  UnitSide teacher;
  const std::int64_t* excluded;  // (num_units, 2) positions in the list that do not take part; negative: none
  const double* span_scores;  // (num_units, 2): student, teacher; in raw logits, -inf without a span column
  Divergence divergence;
  double beta;
  double temperature;
};

struct UnitOutputs {
  float* unit_kl;
  float* unit_entropy;
  RowState* unit_state;
};

// Indexed by student row unless said otherwise.
struct UnitBackwardInputs {
  const float* grad_unit_kl;      // by unit
  const RowState* unit_state;     // by unit
  const std::int64_t* row_units;  // the unit that begins at this row; negative where none does
  // temperature * gradient = dense * softmax(row) + onehot at the label, beside that of the columns.
  const double* dense;
  const double* onehot;
  const double* row_lse;  // of the whole row over temperature; read where dense is not 0
  const std::int64_t* labels;
  std::int64_t num_rows;
  std::int64_t vocab_size;  // of the student
};

}  // namespace sod
