// The argument structs as Python classes with keyword-only constructors, the same in both modules.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "sod/log_probs.h"
#include "sod/step_kl.h"

namespace sod::bindings {

namespace py = pybind11;

using Address = std::uintptr_t;

// Address 0 stands for "not given".
template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline Logits make_logits(Address data, std::int64_t stride_batch, std::int64_t stride_time) {
  return {pointer<void>(data), stride_batch, stride_time};
}

inline Rows make_rows(int dtype, std::int64_t batch, std::int64_t time, std::int64_t vocab_size,
                      double temperature, Address step_ids) {
  return {static_cast<DType>(dtype), batch, time, vocab_size, temperature, pointer<std::int64_t>(step_ids)};
}

inline Problem make_problem(const Rows& rows, const Logits& student, const Logits& teacher,
                            const Logits& reference, int divergence, double beta, double min_log_prob,
                            Address sampled_ids) {
  return {rows,
          student,
          teacher,
          reference,
          static_cast<Divergence>(divergence),
          beta,
          min_log_prob,
          pointer<std::int64_t>(sampled_ids)};
}

inline ForwardOutputs make_outputs(Address token_kl, Address token_reference_kl, Address student_log_probs,
                                   Address teacher_log_probs, Address student_entropy, Address row_state,
                                   Address step_sums, std::int64_t num_steps) {
  return {pointer<float>(token_kl),          pointer<float>(token_reference_kl),
          pointer<float>(student_log_probs), pointer<float>(teacher_log_probs),
          pointer<float>(student_entropy),   pointer<RowState>(row_state),
          pointer<double>(step_sums),        num_steps};
}

inline BackwardInputs make_upstream(Address token_kl, Address token_reference_kl, Address student_log_probs,
                                    Address student_entropy, Address row_state) {
  return {pointer<float>(token_kl), pointer<float>(token_reference_kl), pointer<float>(student_log_probs),
          pointer<float>(student_entropy), pointer<RowState>(row_state)};
}

inline Gradient make_gradient(Address data, std::int64_t width) {
  return {pointer<void>(data), width};
}

inline LogProbProblem make_log_prob_problem(const Rows& rows, const Logits& student, Address ids,
                                            std::int64_t num_ids) {
  return {rows, student, pointer<std::int64_t>(ids), num_ids};
}

inline LogProbOutputs make_log_prob_outputs(Address log_probs, Address student_entropy, Address row_state) {
  return {pointer<float>(log_probs), pointer<float>(student_entropy), pointer<LogProbState>(row_state)};
}

inline LogProbBackwardInputs make_log_prob_upstream(Address log_probs, Address student_entropy,
                                                    Address row_state, Address picked) {
  return {pointer<float>(log_probs), pointer<float>(student_entropy), pointer<LogProbState>(row_state),
          pointer<float>(picked)};
}

template <class Struct, class Make, class... Names>
void define(py::module_& module, const char* name, Make make, Names... names) {
  py::class_<Struct>(module, name, py::module_local()).def(py::init(make), py::kw_only(), py::arg(names)...);
}

inline void define_arguments(py::module_& module) {
  define<Logits>(module, "Logits", &make_logits, "data", "stride_batch", "stride_time");
  define<Rows>(module, "Rows", &make_rows, "dtype", "batch", "time", "vocab_size", "temperature", "step_ids");
  define<Problem>(module, "Problem", &make_problem, "rows", "student", "teacher", "reference", "divergence",
                  "beta", "min_log_prob", "sampled_ids");
  define<ForwardOutputs>(module, "Outputs", &make_outputs, "token_kl", "token_reference_kl",
                         "student_log_probs", "teacher_log_probs", "student_entropy", "row_state",
                         "step_sums", "num_steps");
  define<BackwardInputs>(module, "Upstream", &make_upstream, "token_kl", "token_reference_kl",
                         "student_log_probs", "student_entropy", "row_state");
  define<Gradient>(module, "Gradient", &make_gradient, "data", "width");
  define<LogProbProblem>(module, "LogProbProblem", &make_log_prob_problem, "rows", "student", "ids",
                         "num_ids");
  define<LogProbOutputs>(module, "LogProbOutputs", &make_log_prob_outputs, "log_probs", "student_entropy",
                         "row_state");
  define<LogProbBackwardInputs>(module, "LogProbUpstream", &make_log_prob_upstream, "log_probs",
                                "student_entropy", "row_state", "picked");
}

}  // namespace sod::bindings
