// Python module sod_kernels.native._cpu: addresses, sizes and strides as integers, checked by its Python
// caller.
#include <pybind11/pybind11.h>

#include "bindings/arguments.h"
#include "cpu/memory.h"
#include "cpu/step_kl.h"

namespace py = pybind11;

namespace {

void forward(const sod::bindings::Inputs& inputs, const sod::bindings::Outputs& outputs, int num_threads) {
  const py::gil_scoped_release release;
  sod::cpu::forward(inputs.student, inputs.teacher, inputs.problem, outputs.outputs, num_threads);
}

void backward(const sod::bindings::Inputs& inputs, const sod::bindings::Upstream& upstream, int num_threads) {
  const py::gil_scoped_release release;
  sod::cpu::backward(inputs.student, inputs.teacher, inputs.problem, upstream.inputs, upstream.gradient,
                     num_threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Step-aware KL on the CPU.";
  sod::bindings::define_arguments(module);
  // A buffer for torch.frombuffer: the tensor keeps it alive, and gives it back when it dies.
  py::class_<sod::cpu::Pages>(module, "Pages", py::buffer_protocol(), py::module_local())
      .def(py::init<std::int64_t>(), py::arg("num_bytes"))
      .def_buffer([](sod::cpu::Pages& pages) {
        return py::buffer_info(static_cast<std::uint8_t*>(pages.data()), pages.bytes());
      });
  module.def("release_kept_pages", &sod::cpu::release_kept_pages);
  module.def("forward", &forward, py::arg("inputs"), py::arg("outputs"), py::kw_only(),
             py::arg("num_threads"));
  module.def("backward", &backward, py::arg("inputs"), py::arg("upstream"), py::kw_only(),
             py::arg("num_threads"));
  module.def("has_threads", &sod::cpu::has_threads);
}
