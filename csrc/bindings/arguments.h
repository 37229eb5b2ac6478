// The argument structs as Python classes with keyword-only constructors, the same in both modules.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "sod/step_kl.h"

namespace sod::bindings {

namespace py = pybind11;

struct Inputs {
  Logits student;
  Logits teacher;
  Problem problem;
};

struct Outputs {
  ForwardOutputs outputs;
};

struct Upstream {
  BackwardInputs inputs;
  Gradient gradient;
};

// Address 0 stands for "not given".
template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline Inputs make_inputs(std::uintptr_t student, std::int64_t student_stride_batch,
                          std::int64_t student_stride_time, std::uintptr_t teacher,
                          std::int64_t teacher_stride_batch, std::int64_t teacher_stride_time, int dtype,
                          std::int64_t batch, std::int64_t time, std::int64_t vocab_size, int divergence,
                          double beta, double temperature, double min_log_prob, std::uintptr_t step_ids,
                          std::uintptr_t sampled_ids) {
  return {{pointer<void>(student), student_stride_batch, student_stride_time},
          {pointer<void>(teacher), teacher_stride_batch, teacher_stride_time},
          {static_cast<DType>(dtype), batch, time, vocab_size, static_cast<Divergence>(divergence), beta,
           temperature, min_log_prob, pointer<std::int64_t>(step_ids), pointer<std::int64_t>(sampled_ids)}};
}

inline Outputs make_outputs(std::uintptr_t token_kl, std::uintptr_t student_log_probs,
                            std::uintptr_t teacher_log_probs, std::uintptr_t student_entropy,
                            std::uintptr_t student_lse, std::uintptr_t teacher_lse, std::uintptr_t kl_aux,
                            std::uintptr_t step_sums, std::int64_t num_steps) {
  return {{pointer<float>(token_kl), pointer<float>(student_log_probs), pointer<float>(teacher_log_probs),
           pointer<float>(student_entropy), pointer<float>(student_lse), pointer<float>(teacher_lse),
           pointer<float>(kl_aux), pointer<double>(step_sums), num_steps}};
}

inline Upstream make_upstream(std::uintptr_t grad_token_kl, std::uintptr_t grad_student_log_probs,
                              std::uintptr_t grad_student_entropy, std::uintptr_t student_lse,
                              std::uintptr_t teacher_lse, std::uintptr_t kl_aux,
                              std::uintptr_t student_entropy, std::uintptr_t grad_student_logits,
                              std::int64_t width) {
  return {{pointer<float>(grad_token_kl), pointer<float>(grad_student_log_probs),
           pointer<float>(grad_student_entropy), pointer<float>(student_lse), pointer<float>(teacher_lse),
           pointer<float>(kl_aux), pointer<float>(student_entropy)},
          {pointer<void>(grad_student_logits), width}};
}

inline void define_arguments(py::module_& module) {
  using py::arg;
  py::class_<Inputs>(module, "Inputs", py::module_local())
      .def(py::init(&make_inputs), py::kw_only(), arg("student"), arg("student_stride_batch"),
           arg("student_stride_time"), arg("teacher"), arg("teacher_stride_batch"),
           arg("teacher_stride_time"), arg("dtype"), arg("batch"), arg("time"), arg("vocab_size"),
           arg("divergence"), arg("beta"), arg("temperature"), arg("min_log_prob"), arg("step_ids"),
           arg("sampled_ids"));
  py::class_<Outputs>(module, "Outputs", py::module_local())
      .def(py::init(&make_outputs), py::kw_only(), arg("token_kl"), arg("student_log_probs"),
           arg("teacher_log_probs"), arg("student_entropy"), arg("student_lse"), arg("teacher_lse"),
           arg("kl_aux"), arg("step_sums"), arg("num_steps"));
  py::class_<Upstream>(module, "Upstream", py::module_local())
      .def(py::init(&make_upstream), py::kw_only(), arg("grad_token_kl"), arg("grad_student_log_probs"),
           arg("grad_student_entropy"), arg("student_lse"), arg("teacher_lse"), arg("kl_aux"),
           arg("student_entropy"), arg("grad_student_logits"), arg("width"));
}

}  // namespace sod::bindings
