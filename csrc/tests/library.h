// The library that a test is linked with: the CPU's, or with SOD_TEST_CUDA that of CUDA devices on a CPU.
//
// `schedule` is what results must not depend on: how many threads share the rows, or in which order the
// threads of a block run.
#pragma once

#include "check.h"
#include "sod/log_probs.h"
#include "sod/step_kl.h"

#if defined(SOD_TEST_CUDA)
#include "cuda/log_probs.h"
#include "cuda/step_kl.h"
#else
#include "cpu/log_probs.h"
#include "cpu/step_kl.h"
#endif

namespace sod::test {

constexpr double kTolerance = 1e-6;

#if defined(SOD_TEST_CUDA)

constexpr bool kIsEmulated = true;
constexpr int kSchedules = 2;
// exp2_approx may be off by 2^-22, once in p and once in q.
constexpr double kGradientTolerance = 4e-7 + 0x1p-21;

template <class Operation, class... Arguments>
void call(Operation operation, int schedule, const Arguments&... arguments) {
  cuda_on_cpu::set_order(static_cast<cuda_on_cpu::Order>(schedule));
  EXPECT(operation(arguments..., nullptr) == cudaSuccess);
}
namespace library = cuda;

#else

constexpr bool kIsEmulated = false;
constexpr int kSchedules = 3;
constexpr double kGradientTolerance = 4e-7;

template <class Operation, class... Arguments>
void call(Operation operation, int schedule, const Arguments&... arguments) {
  operation(arguments..., schedule == 0 ? 1 : 3);
}
namespace library = cpu;

#endif

}  // namespace sod::test
