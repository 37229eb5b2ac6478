// Python module sod_kernels.native._cpu: addresses, sizes and strides as integers, checked by its Python
// caller.
#include <pybind11/pybind11.h>

#include "bindings/arguments.h"
#include "bindings/unit_arguments.h"
#include "cpu/alignment.h"
#include "cpu/lists.h"
#include "cpu/log_probs.h"
#include "cpu/memory.h"
#include "cpu/step_kl.h"
#include "cpu/unit_kl.h"

namespace py = pybind11;

namespace {

using WithoutGil = py::call_guard<py::gil_scoped_release>;
using sod::bindings::Address;
using sod::bindings::pointer;

sod::TokenTable make_token_table(Address bytes, Address offsets, Address symbols, bool has_prefix_space) {
  return {pointer<std::uint8_t>(bytes), pointer<std::int64_t>(offsets), pointer<std::int32_t>(symbols),
          has_prefix_space};
}

sod::cpu::AlignmentProblem make_alignment_problem(const sod::TokenTable& student,
                                                  const sod::TokenTable& teacher, Address student_ids,
                                                  Address teacher_ids, Address student_segments,
                                                  Address teacher_segments, Address is_truncated,
                                                  std::int64_t num_segments) {
  return {student,
          teacher,
          pointer<std::int64_t>(student_ids),
          pointer<std::int64_t>(teacher_ids),
          pointer<std::int64_t>(student_segments),
          pointer<std::int64_t>(teacher_segments),
          pointer<std::uint8_t>(is_truncated),
          num_segments};
}

sod::cpu::AlignmentOutputs make_alignment_outputs(Address student_spans, Address teacher_spans,
                                                  Address segment_units) {
  return {pointer<std::int64_t>(student_spans), pointer<std::int64_t>(teacher_spans),
          pointer<std::int64_t>(segment_units)};
}

void define_alignment(py::module_& module) {
  using sod::bindings::define;
  define<sod::TokenTable>(module, "TokenTable", &make_token_table, "bytes", "offsets", "symbols",
                          "has_prefix_space");
  define<sod::cpu::AlignmentProblem>(module, "AlignmentProblem", &make_alignment_problem, "student",
                                     "teacher", "student_ids", "teacher_ids", "student_segments",
                                     "teacher_segments", "is_truncated", "num_segments");
  define<sod::cpu::AlignmentOutputs>(module, "AlignmentOutputs", &make_alignment_outputs, "student_spans",
                                     "teacher_spans", "segment_units");
  module.def("align", &sod::cpu::align, py::kw_only(), py::arg("problem"), py::arg("outputs"), WithoutGil());
}

sod::cpu::ReadLists make_read_lists(Address ids, Address log_probs, Address tail) {
  return {pointer<std::int64_t>(ids), pointer<double>(log_probs), pointer<double>(tail)};
}

sod::cpu::GivenLists make_given_lists(std::int64_t num_lists, std::int64_t num_ids, std::int64_t vocab_size,
                                      Address step_ids, Address ids, Address log_probs,
                                      Address float_log_probs, double unit, double most_mass) {
  return {num_lists,
          num_ids,
          vocab_size,
          pointer<std::int64_t>(step_ids),
          pointer<std::int64_t>(ids),
          pointer<double>(log_probs),
          pointer<float>(float_log_probs),
          unit,
          most_mass};
}

sod::cpu::ListProblem make_list_problem(std::int64_t num_tokens, std::int64_t num_ids,
                                        std::int64_t vocab_size, Address step_ids,
                                        const sod::cpu::ReadLists& teacher, Address log_probs,
                                        std::int64_t stride, Address sampled_ids, int tail, int divergence,
                                        double beta, double min_log_prob, double unit) {
  return {num_tokens,
          num_ids,
          vocab_size,
          pointer<std::int64_t>(step_ids),
          teacher,
          pointer<float>(log_probs),
          stride,
          pointer<std::int64_t>(sampled_ids),
          static_cast<sod::cpu::Tail>(tail),
          static_cast<sod::Divergence>(divergence),
          beta,
          min_log_prob,
          unit};
}

void compare_lists(const sod::cpu::ListProblem& problem, const sod::ForwardOutputs& outputs, Address slopes,
                   int num_threads) {
  sod::cpu::compare_lists(problem, outputs, pointer<double>(slopes), num_threads);
}

void define_lists(py::module_& module) {
  using sod::bindings::define;
  define<sod::cpu::ReadLists>(module, "ReadLists", &make_read_lists, "ids", "log_probs", "tail");
  define<sod::cpu::GivenLists>(module, "GivenLists", &make_given_lists, "num_lists", "num_ids", "vocab_size",
                               "step_ids", "ids", "log_probs", "float_log_probs", "unit", "most_mass");
  define<sod::cpu::ListProblem>(module, "ListProblem", &make_list_problem, "num_tokens", "num_ids",
                                "vocab_size", "step_ids", "teacher", "log_probs", "stride", "sampled_ids",
                                "tail", "divergence", "beta", "min_log_prob", "unit");
  module.def("read_lists", &sod::cpu::read_lists, py::kw_only(), py::arg("given"), py::arg("lists"),
             py::arg("num_threads"), WithoutGil());
  module.def("compare_lists", &compare_lists, py::kw_only(), py::arg("problem"), py::arg("outputs"),
             py::arg("slopes"), py::arg("num_threads"), WithoutGil());
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Step-aware KL and alignment of tokenizers on the CPU.";
  sod::bindings::define_arguments(module);
  define_alignment(module);
  define_lists(module);
  sod::bindings::define_unit_arguments(module);
  // A buffer for torch.frombuffer: the tensor keeps it alive, and gives it back when it dies.
  py::class_<sod::cpu::Pages>(module, "Pages", py::buffer_protocol(), py::module_local())
      .def(py::init<std::int64_t>(), py::arg("num_bytes"))
      .def_buffer([](sod::cpu::Pages& pages) {
        return py::buffer_info(static_cast<std::uint8_t*>(pages.data()), pages.bytes());
      });
  module.def("release_kept_pages", &sod::cpu::release_kept_pages);
  module.def("forward", &sod::cpu::forward, py::kw_only(), py::arg("problem"), py::arg("outputs"),
             py::arg("num_threads"), WithoutGil());
  module.def("backward", &sod::cpu::backward, py::kw_only(), py::arg("problem"), py::arg("upstream"),
             py::arg("gradient"), py::arg("num_threads"), WithoutGil());
  module.def("forward_backward", &sod::cpu::forward_backward, py::kw_only(), py::arg("problem"),
             py::arg("upstream"), py::arg("outputs"), py::arg("gradient"), py::arg("num_threads"),
             WithoutGil());
  module.def("log_probs_forward", &sod::cpu::log_probs_forward, py::kw_only(), py::arg("problem"),
             py::arg("outputs"), py::arg("num_threads"), WithoutGil());
  module.def("log_probs_backward", &sod::cpu::log_probs_backward, py::kw_only(), py::arg("problem"),
             py::arg("upstream"), py::arg("gradient"), py::arg("num_threads"), WithoutGil());
  module.def("unit_forward", &sod::cpu::unit_forward, py::kw_only(), py::arg("problem"), py::arg("outputs"),
             py::arg("num_threads"), WithoutGil());
  module.def("unit_backward", &sod::cpu::unit_backward, py::kw_only(), py::arg("problem"),
             py::arg("upstream"), py::arg("gradient"), py::arg("num_threads"), WithoutGil());
  module.def("has_threads", &sod::cpu::has_threads);
}
