// Python module sod_kernels.native._cuda: like _cpu, plus device and stream.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings/arguments.h"
#include "cuda/step_kl.h"

namespace py = pybind11;

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("native CUDA backend, ") + what + ": " + cudaGetErrorName(error) +
                           ": " + cudaGetErrorString(error));
}

// The caller's device is current inside, and the previous one again afterwards.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
    is_changed_ = device != previous_;
  }
  ~DeviceGuard() {
    if (is_changed_) (void)cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool is_changed_ = false;
};

cudaStream_t stream_at(std::uintptr_t address) {
  return reinterpret_cast<cudaStream_t>(address);
}

void forward(const sod::bindings::Inputs& inputs, const sod::bindings::Outputs& outputs, int device,
             std::uintptr_t stream) {
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  check(
      sod::cuda::forward(inputs.student, inputs.teacher, inputs.problem, outputs.outputs, stream_at(stream)),
      "forward");
}

void backward(const sod::bindings::Inputs& inputs, const sod::bindings::Upstream& upstream, int device,
              std::uintptr_t stream) {
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  check(sod::cuda::backward(inputs.student, inputs.teacher, inputs.problem, upstream.inputs,
                            upstream.gradient, stream_at(stream)),
        "backward");
}

// An empty string where a device can be used, otherwise the driver's own words.
std::string probe() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    return std::string("No CUDA device can be used: ") + cudaGetErrorString(error) + ".";
  return count > 0 ? "" : "No CUDA device can be used: the driver reports none.";
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "Step-aware KL on CUDA devices.";
  sod::bindings::define_arguments(module);
  module.def("forward", &forward, py::arg("inputs"), py::arg("outputs"), py::kw_only(), py::arg("device"),
             py::arg("stream"));
  module.def("backward", &backward, py::arg("inputs"), py::arg("upstream"), py::kw_only(), py::arg("device"),
             py::arg("stream"));
  module.def("probe", &probe);
}
