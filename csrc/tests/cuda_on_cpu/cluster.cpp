#include "cluster.h"

#include <cstring>
#include <map>
#include <vector>

namespace sod::cuda_on_cpu {
namespace {

// Of one thread, at the cluster's barrier.
struct Visit {
  bool has_arrived = false;
  std::uint64_t phase = 0;
};

struct ClusterBarrier {
  std::vector<Visit> visits;
  std::vector<unsigned> sleeping;
  unsigned arrived = 0;
  std::uint64_t phase = 0;
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct CopyBarrier {
  unsigned rank;  // of its block
  bool is_fenced = false;
  bool is_announced = false;
  bool is_open = false;
  std::size_t announced = 0;  // bytes
  std::size_t started = 0;
  std::vector<Copy> copies;
  std::vector<unsigned> sleeping;
};

ClusterBarrier cluster_barrier;
std::map<const void*, CopyBarrier> copy_barriers;

void wake_all(std::vector<unsigned>& sleeping) {
  for (const unsigned thread : sleeping) wake(thread);
  sleeping.clear();
}

CopyBarrier& find(const void* address) {
  const auto found = copy_barriers.find(address);
  if (found == copy_barriers.end()) fail("uses a barrier of copies that was not initialised");
  return found->second;
}

bool is_complete(const CopyBarrier& barrier) {
  return barrier.is_announced && barrier.started == barrier.announced;
}

bool is_whole_packs(const void* address, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % 16 == 0 && bytes % 16 == 0;
}

}  // namespace

void arrive_in_cluster() {
  cluster_barrier.visits.resize(cluster_threads());
  Visit& visit = cluster_barrier.visits[current_thread()];
  if (visit.has_arrived) fail("arrives at the cluster's barrier again without having waited");
  visit = {true, cluster_barrier.phase};
  if (++cluster_barrier.arrived < cluster_threads()) return;
  cluster_barrier.arrived = 0;
  ++cluster_barrier.phase;
  wake_all(cluster_barrier.sleeping);
}

void wait_in_cluster(const Place& place) {
  cluster_barrier.visits.resize(cluster_threads());
  Visit& visit = cluster_barrier.visits[current_thread()];
  if (!visit.has_arrived) fail("waits at the cluster's barrier without having arrived");
  if (visit.phase == cluster_barrier.phase) {
    cluster_barrier.sleeping.push_back(current_thread());
    sleep(place);
  }
  visit.has_arrived = false;
}

void init_copy_barrier(const void* barrier) {
  if (!is_shared(barrier, sizeof(std::uint64_t))) fail("puts a barrier of copies outside its shared memory");
  copy_barriers[barrier] = {};
  copy_barriers[barrier].rank = cluster_rank();
}

void fence_async() {
  for (auto& [address, barrier] : copy_barriers) {
    if (barrier.rank == cluster_rank()) barrier.is_fenced = true;
  }
}

void expect_copies(const void* address, std::size_t bytes) {
  CopyBarrier& barrier = find(address);
  if (barrier.is_announced) fail("announces copies to a barrier that has been told");
  barrier.is_announced = true;
  barrier.announced = bytes;
  if (is_complete(barrier)) wake_all(barrier.sleeping);
}

void bulk_copy(void* shared, const void* global, std::size_t bytes, const void* address) {
  CopyBarrier& barrier = find(address);
  if (!barrier.is_fenced) fail("copies with a barrier that the copy may not see: there was no fence");
  if (!is_whole_packs(shared, bytes) || !is_whole_packs(global, bytes)) {
    fail("copies what does not begin and end at multiples of 16 bytes");
  }
  if (!is_shared(shared, bytes)) fail("copies to what is not its shared memory");
  barrier.copies.push_back({shared, global, bytes});
  barrier.started += bytes;
  device.copied_bytes += bytes;
  if (is_complete(barrier)) wake_all(barrier.sleeping);
}

void wait_for_copies(const void* address, const Place& place) {
  CopyBarrier& barrier = find(address);
  while (!barrier.is_open && !is_complete(barrier)) {
    barrier.sleeping.push_back(current_thread());
    sleep(place);
  }
  barrier.is_open = true;
  for (const Copy& copy : barrier.copies) std::memcpy(copy.to, copy.from, copy.bytes);
  barrier.copies.clear();
}

void forget_cluster() {
  cluster_barrier = {};
  copy_barriers.clear();
}

bool has_unfinished_copies(unsigned rank) {
  for (const auto& [address, barrier] : copy_barriers) {
    if (barrier.rank == rank && !barrier.copies.empty()) return true;
  }
  return false;
}

}  // namespace sod::cuda_on_cpu
