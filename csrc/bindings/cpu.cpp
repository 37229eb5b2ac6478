// Python module sod_kernels.native._cpu: addresses, sizes and strides as integers, checked by its Python
// caller.
#include <pybind11/pybind11.h>

#include "bindings/arguments.h"
#include "bindings/unit_arguments.h"
#include "cpu/log_probs.h"
#include "cpu/memory.h"
#include "cpu/step_kl.h"
#include "cpu/unit_kl.h"

namespace py = pybind11;

namespace {

using WithoutGil = py::call_guard<py::gil_scoped_release>;

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Step-aware KL on the CPU.";
  sod::bindings::define_arguments(module);
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
