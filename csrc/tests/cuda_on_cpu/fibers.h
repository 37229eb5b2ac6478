// Runs the threads of a CUDA block, or of a cluster of blocks, as fibers of one CPU thread, one after the
// other, always in the same order.
//
// A thread runs until it waits for others, in a barrier or a shuffle, or ends. Of those that can go on, the
// first in the order goes on, so the first warp of the first block runs as far ahead of the others as the
// barriers allow; a result that depends on the order shows a barrier that is missing. Clusters run one at a
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace sod::cuda_on_cpu {

// Of the threads of a cluster, and of the clusters of a grid.
enum class Order { kAscending, kDescending };

void set_order(Order order);

struct Grid {
  std::string name;
  unsigned blocks;
  unsigned threads;               // of a block
  unsigned cluster_size = 1;      // blocks; divides their number
  std::size_t dynamic_bytes = 0;  // of a block's shared memory
};

// What kernels that want clusters ask of the device, and what they did.
struct Device {
  std::int64_t cluster_block_bytes = 0;  // of shared memory that a block may ask for; 0 without clusters
  std::vector<int> clusters;             // their sizes, launch by launch
  std::size_t copied_bytes = 0;          // by bulk copies
};
inline Device device;

// Runs `kernel` in every thread of every block. Throws std::runtime_error with the name, the block and the
// threads where a thread fails, where threads meet in different places, and where some wait for ever.
void run_grid(const Grid& grid, const std::function<void()>& kernel);

// ---- from inside a kernel

enum class Group { kWarp, kBlock };

// Where a thread meets others; it must be the same place for all of them.
struct Place {
  const char* what;
  const char* file;
  int line;
};

// Waits for the whole group. With `source` >= 0, what the group's thread of that number brought; otherwise
// all values or'ed.
std::uint64_t meet(Group group, const Place& place, std::uint64_t value, int source);

// The block's memory for `key`, all bits set when the block starts. Freed when it ends.
void* shared_memory(const void* key, std::size_t size);

// The block's memory of the size that the launch asked for.
void* dynamic_memory();

// Ends the launch with an error that names this thread.
[[noreturn]] void fail(const char* what);

// ---- for what threads of a cluster do together: see cluster.h

unsigned cluster_size();
unsigned cluster_rank();

// Of the threads of the cluster, this one's number and how many there are.
unsigned current_thread();
unsigned cluster_threads();

// Waits until somebody wakes the thread.
void sleep(const Place& place);
void wake(unsigned thread);

// Whether all of it is one piece of the block's shared memory.
bool is_shared(const void* address, std::size_t size);

// What lies at `mine` in the shared memory of the cluster's block of that rank.
void* peer_address(const void* mine, std::size_t size, unsigned rank);

}  // namespace sod::cuda_on_cpu
