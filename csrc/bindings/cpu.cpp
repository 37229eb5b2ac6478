// Python module sod_kernels.native._cpu: addresses, sizes and strides as integers, checked by its Python
// caller.
#include <pybind11/pybind11.h>

#include "bindings/arguments.h"
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
  module.def("forward", &forward, py::arg("inputs"), py::arg("outputs"), py::kw_only(),
             py::arg("num_threads"));
  module.def("backward", &backward, py::arg("inputs"), py::arg("upstream"), py::kw_only(),
             py::arg("num_threads"));
  module.def("has_threads", &sod::cpu::has_threads);
}
