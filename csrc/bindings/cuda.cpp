// Python module sod_kernels.native._cuda: like _cpu, plus device and stream.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings/arguments.h"
#include "cuda/log_probs.h"
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

// Calls launch(stream) on the caller's device and stream.
template <class Launch>
void run(const char* what, int device, std::uintptr_t stream, Launch launch) {
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  check(launch(reinterpret_cast<cudaStream_t>(stream)), what);
}

void forward(const sod::Problem& problem, const sod::ForwardOutputs& outputs, int device,
             std::uintptr_t stream) {
  run("forward", device, stream, [&](cudaStream_t on) { return sod::cuda::forward(problem, outputs, on); });
}

void backward(const sod::Problem& problem, const sod::BackwardInputs& upstream, const sod::Gradient& gradient,
              int device, std::uintptr_t stream) {
  run("backward", device, stream,
      [&](cudaStream_t on) { return sod::cuda::backward(problem, upstream, gradient, on); });
}

void forward_backward(const sod::Problem& problem, const sod::BackwardInputs& upstream,
                      const sod::ForwardOutputs& outputs, const sod::Gradient& gradient, int device,
                      std::uintptr_t stream) {
  run("forward_backward", device, stream,
      [&](cudaStream_t on) { return sod::cuda::forward_backward(problem, upstream, outputs, gradient, on); });
}

void log_probs_forward(const sod::LogProbProblem& problem, const sod::LogProbOutputs& outputs, int device,
                       std::uintptr_t stream) {
  run("log_probs_forward", device, stream,
      [&](cudaStream_t on) { return sod::cuda::log_probs_forward(problem, outputs, on); });
}

void log_probs_backward(const sod::LogProbProblem& problem, const sod::LogProbBackwardInputs& upstream,
                        const sod::Gradient& gradient, int device, std::uintptr_t stream) {
  run("log_probs_backward", device, stream,
      [&](cudaStream_t on) { return sod::cuda::log_probs_backward(problem, upstream, gradient, on); });
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
  module.def("forward", &forward, py::kw_only(), py::arg("problem"), py::arg("outputs"), py::arg("device"),
             py::arg("stream"));
  module.def("backward", &backward, py::kw_only(), py::arg("problem"), py::arg("upstream"),
             py::arg("gradient"), py::arg("device"), py::arg("stream"));
  module.def("forward_backward", &forward_backward, py::kw_only(), py::arg("problem"), py::arg("upstream"),
             py::arg("outputs"), py::arg("gradient"), py::arg("device"), py::arg("stream"));
  module.def("log_probs_forward", &log_probs_forward, py::kw_only(), py::arg("problem"), py::arg("outputs"),
             py::arg("device"), py::arg("stream"));
  module.def("log_probs_backward", &log_probs_backward, py::kw_only(), py::arg("problem"),
             py::arg("upstream"), py::arg("gradient"), py::arg("device"), py::arg("stream"));
  module.def("probe", &probe);
}
