// That the emulation of clusters and bulk copies sees what it is for: most kernels here have one fault.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "failure_of.h"

namespace {

using namespace sod::cuda;
using sod::cuda_on_cpu::Order;
using sod::test::has;

constexpr int kSize = 4;
constexpr std::int64_t kBytes = 1 << 14;

template <auto kernel>
std::string failure_of(const float* in, float* out) {
  return sod::test::failure_of([&] { launch_clusters<kernel>(2, kSize, kBytes, nullptr, in, out); });
}

// ---- the cluster's barrier and the blocks' memory

struct Slot {
  double value;
};

bool is_leader() {
  return threadIdx.x == 0;
}

// What is missing from an exchange of one number between the blocks.
enum class Fault { kNone, kNoBarrier, kNoArrival, kNoWait, kNoLastWait, kNoSuchRank, kNotShared };

template <Fault fault>
void adds_over_its_cluster(const float*, float* out) {
  if (is_leader()) shared_memory<Slot>().value = 1 + cluster_rank();
  if (fault != Fault::kNoBarrier && fault != Fault::kNoArrival) cluster_arrive();
  if (fault != Fault::kNoBarrier && fault != Fault::kNoWait) cluster_wait();
  double sum = 0;
  const double mine = 1;
  for (unsigned rank = 0; rank < cluster_size(); ++rank) {
    const unsigned from = fault == Fault::kNoSuchRank ? rank + 1 : rank;
    sum += read_peer(fault == Fault::kNotShared ? mine : shared_memory<Slot>().value, from);
  }
  if (fault != Fault::kNoLastWait) {
    cluster_arrive();
    cluster_wait();
  }
  if (is_leader()) out[blockIdx.x] = static_cast<float>(sum);
}

template <Fault fault>
std::string exchange_failure() {
  std::vector<float> out(2 * kSize);
  return failure_of<adds_over_its_cluster<fault>>(nullptr, out.data());
}

void half_a_cluster_arrives(const float*, float*) {
  if (cluster_rank() % 2 == 0) return;
  cluster_arrive();
  cluster_wait();
}

void test_the_blocks_of_a_cluster() {
  for (const Order order : {Order::kAscending, Order::kDescending}) {
    sod::cuda_on_cpu::set_order(order);
    std::vector<float> out(2 * kSize);
    EXPECT(failure_of<adds_over_its_cluster<Fault::kNone>>(nullptr, out.data()).empty());
    for (const float sum : out) EXPECT(sum == 1 + 2 + 3 + 4);
    EXPECT(has(exchange_failure<Fault::kNoBarrier>(), "does not have yet"));
    EXPECT(has(exchange_failure<Fault::kNoArrival>(), "waits at the cluster's barrier without having arr"));
    EXPECT(!exchange_failure<Fault::kNoWait>().empty());
    EXPECT(has(exchange_failure<Fault::kNoLastWait>(), "of a block that has ended"));
    EXPECT(has(exchange_failure<Fault::kNoSuchRank>(), "to a block that its cluster does not have"));
    EXPECT(has(exchange_failure<Fault::kNotShared>(), "an address that is not in its shared memory"));
    const std::string text = failure_of<half_a_cluster_arrives>(nullptr, nullptr);
    EXPECT(has(text, "threads wait for ever: 0 have ended; 256 wait in cluster_wait ("));
    EXPECT(!has(text, "block 0:") && !has(text, "block 6:"));
  }
  sod::cuda_on_cpu::set_order(Order::kAscending);
}

// ---- bulk copies

enum class CopyFault {
  kNone,
  kNoWait,
  kNoFence,
  kNoBarrier,
  kNoAnnouncement,
  kTooFewBytes,
  kOddSource,
  kOddSize,
  kTooLong
};

template <CopyFault fault>
void copies_its_part(const float* in, float* out) {
  constexpr std::uint32_t bytes = kThreads * sizeof(float);
  CopyBarrier& barrier = shared_memory<CopyBarrier>();
  float* part = static_cast<float*>(dynamic_shared_memory());
  if (is_leader()) {
    if (fault != CopyFault::kNoBarrier) init_copy_barrier(barrier);
    if (fault != CopyFault::kNoFence) fence_async();
  }
  __syncthreads();
  if (is_leader()) {
    const float* from = in + blockIdx.x * kThreads + (fault == CopyFault::kOddSource);
    if (fault != CopyFault::kNoAnnouncement) expect_copies(barrier, bytes);
    const std::uint32_t less = fault == CopyFault::kTooFewBytes ? 16 : fault == CopyFault::kOddSize ? 4 : 0;
    bulk_copy(part, from, fault == CopyFault::kTooLong ? kBytes + 16 : bytes - less, barrier);
  }
  if (fault != CopyFault::kNoWait) wait_for_copies(barrier);
  out[blockIdx.x * kThreads + threadIdx.x] = part[threadIdx.x];
}

template <CopyFault fault>
std::string copy_failure() {
  std::vector<float> in(2 * kSize * kThreads + 1), out(2 * kSize * kThreads);
  return failure_of<copies_its_part<fault>>(in.data(), out.data());
}

// One thread waits for all, which the others must learn from a barrier of the block.
template <bool has_barrier>
void one_thread_waits(const float* in, float* out) {
  CopyBarrier& barrier = shared_memory<CopyBarrier>();
  float* part = static_cast<float*>(dynamic_shared_memory());
  if (is_leader()) {
    init_copy_barrier(barrier);
    fence_async();
    expect_copies(barrier, kThreads * sizeof(float));
    bulk_copy(part, in, kThreads * sizeof(float), barrier);
  }
  __syncthreads();
  if (threadIdx.x == kThreads / 2) wait_for_copies(barrier);
  if (has_barrier) __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = part[threadIdx.x];
}

template <bool has_barrier>
bool has_read_all() {
  std::vector<float> in(kThreads, 1.0f), out(2 * kSize * kThreads);
  EXPECT(failure_of<one_thread_waits<has_barrier>>(in.data(), out.data()).empty());
  for (const float value : out) {
    if (value != 1.0f) return false;
  }
  return true;
}

void test_copies() {
  for (const Order order : {Order::kAscending, Order::kDescending}) {
    sod::cuda_on_cpu::set_order(order);
    std::vector<float> in, out(2 * kSize * kThreads);
    for (std::size_t i = 0; i < out.size(); ++i) in.push_back(static_cast<float>(i));
    EXPECT(failure_of<copies_its_part<CopyFault::kNone>>(in.data(), out.data()).empty());
    EXPECT(in == out);
    EXPECT(has_read_all<true>());
    EXPECT(!has_read_all<false>());
    EXPECT(has(copy_failure<CopyFault::kNoWait>(), "into which copies are still on their way"));
    EXPECT(has(copy_failure<CopyFault::kNoFence>(), "there was no fence"));
    EXPECT(has(copy_failure<CopyFault::kNoBarrier>(), "that was not initialised"));
    EXPECT(has(copy_failure<CopyFault::kNoAnnouncement>(), "256 wait in wait_for_copies ("));
    EXPECT(has(copy_failure<CopyFault::kTooFewBytes>(), "256 wait in wait_for_copies ("));
    EXPECT(has(copy_failure<CopyFault::kOddSource>(), "at multiples of 16 bytes"));
    EXPECT(has(copy_failure<CopyFault::kOddSize>(), "at multiples of 16 bytes"));
    EXPECT(has(copy_failure<CopyFault::kTooLong>(), "to what is not its shared memory"));
  }
  sod::cuda_on_cpu::set_order(Order::kAscending);
}

// ---- launches

void reads_memory_that_nobody_wrote(const float*, float* out) {
  float& value = *static_cast<float*>(dynamic_shared_memory());
  if (is_leader()) out[blockIdx.x] = value;
  value = 1.0f;
}

void test_launches() {
  std::vector<float> out(2 * kSize);
  EXPECT(failure_of<reads_memory_that_nobody_wrote>(nullptr, out.data()).empty());
  for (const float value : out) EXPECT(std::isnan(value));
  sod::cuda_on_cpu::device.cluster_block_bytes = kBytes - 1;
  EXPECT(failure_of<reads_memory_that_nobody_wrote>(nullptr, nullptr).empty());
  EXPECT(cudaGetLastError() == cudaErrorInvalidConfiguration);
}

}  // namespace

int main() {
  sod::cuda_on_cpu::device.cluster_block_bytes = kBytes;
  test_the_blocks_of_a_cluster();
  test_copies();
  test_launches();
  return sod::test::finish();
}
