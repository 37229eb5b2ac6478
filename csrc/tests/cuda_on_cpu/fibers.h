// Runs the threads of a CUDA block as fibers of one CPU thread, one after the other, always in the same
// order.
//
// A thread runs until it waits for others, in a barrier or a shuffle, or ends. Of those that can go on, the
// first in the order goes on, so the first warp runs as far ahead of the others as the barriers allow; a
// result that depends on the order shows a barrier that is missing. Blocks run one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace sod::cuda_on_cpu {

// Of the threads of a block, and of the blocks of a grid.
enum class Order { kAscending, kDescending };

void set_order(Order order);

// Runs `kernel` in every thread of every block. Throws std::runtime_error with the name, the block and the
// threads where a thread fails, where threads meet in different places, and where some wait for ever.
void run_grid(const std::string& name, unsigned blocks, unsigned threads,
              const std::function<void()>& kernel);

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

// Ends the launch with an error that names this thread.
[[noreturn]] void fail(const char* what);

}  // namespace sod::cuda_on_cpu
