// That the emulation sees what it is for: each kernel here has one fault.
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/rows.cuh"
#include "failure_of.h"

namespace {

using sod::cuda::kThreads;
using sod::cuda_on_cpu::Order;
using sod::test::has;

template <auto kernel, class... Arguments>
std::string failure_of(std::int64_t blocks, const Arguments&... arguments) {
  return sod::test::failure_of([&] { sod::cuda::launch_blocks<kernel>(blocks, nullptr, arguments...); });
}

// ---- barriers

void half_of_the_threads_wait(float*) {
  if (threadIdx.x % 2 == 0) __syncthreads();
}

void two_barriers(float*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void warp_waits_for_a_lane_that_waits_for_the_block(float*) {
  if (threadIdx.x == 40) __syncthreads();
  (void)__shfl_xor_sync(~0u, 1.0f, 1);
}

void shuffles_beyond_the_warp(float*) {
  (void)__shfl_xor_sync(~0u, 1.0f, 32);
}

void shuffles_a_part(float*) {
  (void)__shfl_xor_sync(0xffffu, 1.0f, 1);
}

void test_threads_that_do_not_meet() {
  float* const none = nullptr;
  const std::string text = failure_of<half_of_the_threads_wait>(3, none);
  EXPECT(has(text, "half_of_the_threads_wait, block 0: threads wait for ever: 128 have ended; 128 of"));
  EXPECT(has(text, "__syncthreads ("));
  EXPECT(has(failure_of<two_barriers>(1, none), "thread 32 is in __syncthreads ("));
  EXPECT(has(failure_of<warp_waits_for_a_lane_that_waits_for_the_block>(1, none),
             "31 of threads 32 to 63 wait in __shfl_xor_sync"));
  EXPECT(has(failure_of<shuffles_beyond_the_warp>(1, none), "thread 0 reads from a thread that"));
  EXPECT(has(failure_of<shuffles_a_part>(1, none), "thread 0 shuffles a part of its warp"));
}

// ---- memory

// The second block must not see what the first one wrote.
void reads_shared_memory_that_nobody_wrote(float* out) {
  if (threadIdx.x != 0) return;
  out[blockIdx.x] = sod::cuda::shared_memory<float>();
  sod::cuda::shared_memory<float>() = 1.0f;
}

void loads_at_an_odd_address(float* out) {
  (void)sod::cuda::load<float, 4>(out + threadIdx.x);
}

// A reduction without its last barrier.
void sums_without_a_barrier(float* out) {
  auto& shared = sod::cuda::shared_memory<sod::cuda::Shared>();
  float value = static_cast<float>(threadIdx.x);
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) shared.floats[threadIdx.x / 32] = value;
  value = 0;
  for (const float sum : shared.floats) value += sum;
  if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = value;
}

void test_memory() {
  std::vector<float> out(16, 0.0f);
  EXPECT(failure_of<reads_shared_memory_that_nobody_wrote>(2, out.data()).empty());
  EXPECT(std::isnan(out[0]) && std::isnan(out[1]));
  EXPECT(has(failure_of<loads_at_an_odd_address>(1, out.data()), "thread 1 reads or writes 16 bytes"));
}

void test_a_race_shows_in_the_order() {
  std::vector<std::vector<bool>> is_complete;
  for (const Order order : {Order::kAscending, Order::kDescending}) {
    std::vector<float> out(8);
    sod::cuda_on_cpu::set_order(order);
    EXPECT(failure_of<sums_without_a_barrier>(1, out.data()).empty());
    is_complete.emplace_back();
    for (const float sum : out) is_complete.back().push_back(sum == kThreads * (kThreads - 1) / 2);
  }
  EXPECT(is_complete[0] != is_complete[1]);
  sod::cuda_on_cpu::set_order(Order::kAscending);
}

// ---- what works

void numbers_its_threads(float* out) {
  out[blockIdx.x * kThreads + threadIdx.x] = __shfl_xor_sync(~0u, static_cast<float>(threadIdx.x), 5);
}

void test_threads_and_blocks() {
  for (const Order order : {Order::kAscending, Order::kDescending}) {
    std::vector<float> out(3 * kThreads);
    sod::cuda_on_cpu::set_order(order);
    EXPECT(failure_of<numbers_its_threads>(3, out.data()).empty());
    for (std::size_t i = 0; i < out.size(); ++i) EXPECT(out[i] == static_cast<float>((i % kThreads) ^ 5));
  }
  EXPECT(failure_of<numbers_its_threads>(0, static_cast<float*>(nullptr)).empty());
  EXPECT(cudaGetLastError() == cudaErrorInvalidConfiguration);
  EXPECT(cudaGetLastError() == cudaSuccess);
}

void test_exp2_approx() {
  EXPECT(sod::cuda::exp2_approx(0.0f) == 1.0f);
  EXPECT(sod::cuda::exp2_approx(-INFINITY) == 0.0f);
  EXPECT(sod::cuda::exp2_approx(-126.5f) == 0.0f);
  EXPECT(std::isnan(sod::cuda::exp2_approx(NAN)));
  for (float x = -126.0f; x < 20.0f; x += 0.37f) {
    EXPECT_CLOSE(sod::cuda::exp2_approx(x), std::exp2(static_cast<double>(x)), 0x1.8p-22);
  }
}

}  // namespace

int main() {
  test_threads_that_do_not_meet();
  test_memory();
  test_a_race_shows_in_the_order();
  test_threads_and_blocks();
  test_exp2_approx();
  return sod::test::finish();
}
