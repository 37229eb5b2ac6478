// The argument structs of the unit sweeps as Python classes.
#pragma once

#include "bindings/arguments.h"
#include "sod/unit_kl.h"

namespace sod::bindings {

inline UnitSide make_unit_side(Address data, std::int64_t stride, std::int64_t width, Address columns,
                               Address rows) {
  return {pointer<void>(data), stride, width, pointer<std::int32_t>(columns), pointer<std::int64_t>(rows)};
}

inline UnitProblem make_unit_problem(int dtype, std::int64_t num_units, std::int64_t num_columns,
                                     std::int64_t stride_columns, const UnitSide& student,
                                     const UnitSide& teacher, Address excluded, Address span_scores,
                                     int divergence, double beta, double temperature) {
  return {static_cast<DType>(dtype),
          num_units,
          num_columns,
          stride_columns,
          student,
          teacher,
          pointer<std::int64_t>(excluded),
          pointer<double>(span_scores),
          static_cast<Divergence>(divergence),
          beta,
          temperature};
}

inline UnitOutputs make_unit_outputs(Address unit_kl, Address unit_entropy, Address unit_state) {
  return {pointer<float>(unit_kl), pointer<float>(unit_entropy), pointer<RowState>(unit_state)};
}

inline UnitBackwardInputs make_unit_upstream(Address unit_kl, Address unit_state, Address row_units,
                                             Address dense, Address onehot, Address row_lse, Address labels,
                                             std::int64_t num_rows, std::int64_t vocab_size) {
  return {pointer<float>(unit_kl),
          pointer<RowState>(unit_state),
          pointer<std::int64_t>(row_units),
          pointer<double>(dense),
          pointer<double>(onehot),
          pointer<double>(row_lse),
          pointer<std::int64_t>(labels),
          num_rows,
          vocab_size};
}

inline void define_unit_arguments(py::module_& module) {
  define<UnitSide>(module, "UnitSide", &make_unit_side, "data", "stride", "width", "columns", "rows");
  define<UnitProblem>(module, "UnitProblem", &make_unit_problem, "dtype", "num_units", "num_columns",
                      "stride_columns", "student", "teacher", "excluded", "span_scores", "divergence", "beta",
                      "temperature");
  define<UnitOutputs>(module, "UnitOutputs", &make_unit_outputs, "unit_kl", "unit_entropy", "unit_state");
  define<UnitBackwardInputs>(module, "UnitUpstream", &make_unit_upstream, "unit_kl", "unit_state",
                             "row_units", "dense", "onehot", "row_lse", "labels", "num_rows", "vocab_size");
}

}  // namespace sod::bindings
