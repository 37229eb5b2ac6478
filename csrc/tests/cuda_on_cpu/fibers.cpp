#include "fibers.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cluster.h"
#include "cuda_runtime_api.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace sod::cuda_on_cpu {
namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = 1 << 17;

struct Thread {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  jmp_buf context;
  bool has_started;
  bool is_done;
  unsigned rank;  // in the order
  std::uint64_t value;
  int source;
  std::uint64_t result;
  const Place* sleeps_in;
};

// Threads that wait for each other.
struct Meeting {
  unsigned first;  // thread of the cluster
  unsigned size;
  unsigned arrived;
  Place place;  // of those that have arrived
};

// Ranks of the threads that can go on.
class Ranks {
 public:
  void fill(unsigned count) {
    words_.assign((count + 63) / 64, 0);
    for (unsigned rank = 0; rank < count; ++rank) insert(rank);
  }
  void insert(unsigned rank) { words_[rank / 64] |= std::uint64_t{1} << rank % 64; }
  // The first one, no longer among them; -1 if there is none.
  int take_first() {
    for (std::size_t i = 0; i < words_.size(); ++i) {
      if (words_[i] == 0) continue;
      const int bit = __builtin_ctzll(words_[i]);
      words_[i] &= words_[i] - 1;
      return static_cast<int>(64 * i) + bit;
    }
    return -1;
  }

 private:
  std::vector<std::uint64_t> words_;
};

struct Memory {
  std::unique_ptr<char[]> bytes;
  std::size_t size;
};

struct Block {
  std::vector<Meeting> meetings;  // of the warps, then that of the block
  std::map<const void*, Memory> shared;
  unsigned num_done = 0;
};

struct Launch {
  Grid grid;
  const std::function<void()>* kernel;
  std::vector<Thread> threads;  // of a cluster, block by block
  std::vector<unsigned> thread_of_rank;
  Ranks can_run;
  unsigned first_block;
  std::vector<Block> blocks;
  std::string failure;
  jmp_buf scheduler;
};

Launch launch;
Order current_order = Order::kAscending;

std::string to_text(const Place& place) {
  return std::string(place.what) + " (" + place.file + ":" + std::to_string(place.line) + ")";
}

bool is_same(const Place& x, const Place& y) {
  const bool is_same_line = x.line == y.line && x.what == y.what;
  return is_same_line && (x.file == y.file || std::strcmp(x.file, y.file) == 0);
}

std::string to_text(unsigned block, unsigned thread) {
  return launch.grid.name + ", block " + std::to_string(block) + ", thread " + std::to_string(thread);
}

Block& current_block() {
  return launch.blocks[cluster_rank()];
}

std::vector<unsigned> order_of(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (current_order == Order::kDescending) std::reverse(order.begin(), order.end());
  return order;
}

// ---- switching between stacks; the address sanitiser wants to be told

#if defined(__SANITIZE_ADDRESS__)
const void* main_stack;
std::size_t main_stack_size;
void begin_switch(const void* stack, std::size_t size) {
  __sanitizer_start_switch_fiber(nullptr, stack, size);
}
void end_switch_to_thread() {
  __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size);
}
void begin_switch_to_main() {
  begin_switch(main_stack, main_stack_size);
}
void end_switch_to_main() {
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}
// Threads leave without returning, so the frames of the last one on the stack still count as there.
void clear_stack(const char* stack) {
  __asan_unpoison_memory_region(stack, kStackBytes);
}
#else
void begin_switch(const void*, std::size_t) {}
void end_switch_to_thread() {}
void begin_switch_to_main() {}
void end_switch_to_main() {}
void clear_stack(const char*) {}
#endif

[[noreturn]] void leave() {
  begin_switch_to_main();
  _longjmp(launch.scheduler, 1);
}

void pause(Thread& thread) {
  if (_setjmp(thread.context) == 0) leave();
  end_switch_to_thread();
}

void run_thread() {
  end_switch_to_thread();
  (*launch.kernel)();
  launch.threads[current_thread()].is_done = true;
  leave();
}

[[noreturn]] void start(unsigned number) {
  Thread& thread = launch.threads[number];
  thread.has_started = true;
  clear_stack(thread.stack.get());
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.get();
  // Stacks that end at the same place of a page would share the same few lines of the cache.
  context.uc_stack.ss_size = kStackBytes - number % 32 * 128;
  makecontext(&context, run_thread, 0);
  setcontext(&context);
  std::abort();
}

void resume(unsigned number) {
  Thread& thread = launch.threads[number];
  threadIdx.x = number % launch.grid.threads;
  blockIdx.x = launch.first_block + number / launch.grid.threads;
  if (_setjmp(launch.scheduler) == 0) {
    begin_switch(thread.stack.get(), kStackBytes);
    if (!thread.has_started) start(number);
    _longjmp(thread.context, 1);
  }
  end_switch_to_main();
}

// ---- one cluster

void start_cluster() {
  const unsigned size = launch.grid.threads, count = cluster_threads();
  launch.failure.clear();
  forget_cluster();
  launch.thread_of_rank = order_of(count);
  for (unsigned rank = 0; rank < count; ++rank) launch.threads[launch.thread_of_rank[rank]].rank = rank;
  for (Thread& thread : launch.threads) {
    thread.has_started = thread.is_done = false;
    thread.sleeps_in = nullptr;
  }
  launch.can_run.fill(count);
  launch.blocks.clear();
  launch.blocks.resize(launch.grid.cluster_size);
  for (unsigned rank = 0; rank < launch.grid.cluster_size; ++rank) {
    std::vector<Meeting>& meetings = launch.blocks[rank].meetings;
    for (unsigned first = 0; first < size; first += kWarp) {
      meetings.push_back({rank * size + first, std::min(kWarp, size - first), 0, {}});
    }
    meetings.push_back({rank * size, size, 0, {}});
  }
}

// Of one block that has not ended; "" of one that has.
std::string describe_waiting(unsigned rank) {
  const Block& block = launch.blocks[rank];
  const unsigned size = launch.grid.threads;
  if (block.num_done == size) return "";
  std::string text = launch.grid.name + ", block " + std::to_string(launch.first_block + rank) +
                     ": threads wait for ever: " + std::to_string(block.num_done) + " have ended";
  for (const Meeting& meeting : block.meetings) {
    if (meeting.arrived == 0) continue;
    const unsigned first = meeting.first - rank * size;
    text += "; " + std::to_string(meeting.arrived) + " of threads " + std::to_string(first) + " to " +
            std::to_string(first + meeting.size - 1) + " wait in " + to_text(meeting.place);
  }
  std::map<std::string, unsigned> sleeping;
  for (unsigned number = rank * size; number < (rank + 1) * size; ++number) {
    const Place* place = launch.threads[number].sleeps_in;
    if (place != nullptr) ++sleeping[to_text(*place)];
  }
  for (const auto& [place, count] : sleeping) text += "; " + std::to_string(count) + " wait in " + place;
  return text + ". ";
}

void end_thread() {
  Block& block = current_block();
  if (++block.num_done < launch.grid.threads) return;
  if (has_unfinished_copies(cluster_rank())) {
    launch.failure =
        to_text(blockIdx.x, threadIdx.x) + " ends its block, into which copies are still on their way";
  }
  block.shared.clear();
}

void run_cluster() {
  start_cluster();
  std::string waiting;
  for (int rank; (rank = launch.can_run.take_first()) >= 0;) {
    const unsigned number = launch.thread_of_rank[static_cast<std::size_t>(rank)];
    resume(number);
    if (launch.failure.empty() && launch.threads[number].is_done) end_thread();
    if (!launch.failure.empty()) throw std::runtime_error(launch.failure);
  }
  for (unsigned rank = 0; rank < launch.grid.cluster_size; ++rank) waiting += describe_waiting(rank);
  if (!waiting.empty()) throw std::runtime_error(waiting);
}

// All have come: everybody gets its result and goes on.
void release(Meeting& meeting) {
  const auto first = launch.threads.begin() + meeting.first, last = first + meeting.size;
  std::uint64_t all = 0;
  for (auto thread = first; thread != last; ++thread) all |= thread->value;
  for (auto thread = first; thread != last; ++thread) {
    thread->result = thread->source < 0 ? all : (first + thread->source)->value;
    launch.can_run.insert(thread->rank);
  }
  meeting.arrived = 0;
}

}  // namespace

void set_order(Order order) {
  current_order = order;
}

void run_grid(const Grid& grid, const std::function<void()>& kernel) {
  launch.grid = grid;
  launch.kernel = &kernel;
  if (launch.threads.size() < cluster_threads()) launch.threads.resize(cluster_threads());
  for (const unsigned cluster : order_of(grid.blocks / grid.cluster_size)) {
    launch.first_block = cluster * grid.cluster_size;
    run_cluster();
  }
  launch.blocks.clear();
}

std::uint64_t meet(Group group, const Place& place, std::uint64_t value, int source) {
  Thread& thread = launch.threads[current_thread()];
  std::vector<Meeting>& meetings = current_block().meetings;
  Meeting& meeting = group == Group::kBlock ? meetings.back() : meetings[threadIdx.x / kWarp];
  if (source >= static_cast<int>(meeting.size)) fail("reads from a thread that does not exist");
  if (meeting.arrived == 0) meeting.place = place;
  if (!is_same(meeting.place, place)) {
    launch.failure = to_text(blockIdx.x, threadIdx.x) + " is in " + to_text(place) +
                     " while others wait in " + to_text(meeting.place);
    leave();
  }
  thread.value = value;
  thread.source = source;
  if (++meeting.arrived == meeting.size) release(meeting);
  pause(thread);
  return thread.result;
}

void* shared_memory(const void* key, std::size_t size) {
  Memory& memory = current_block().shared[key];
  if (memory.bytes == nullptr) {
    memory = {std::unique_ptr<char[]>(new char[size]), size};
    std::fill_n(memory.bytes.get(), size, '\xff');
  }
  return memory.bytes.get();
}

void* dynamic_memory() {
  return shared_memory(nullptr, launch.grid.dynamic_bytes);
}

void fail(const char* what) {
  launch.failure = to_text(blockIdx.x, threadIdx.x) + " " + what;
  leave();
}

unsigned cluster_size() {
  return launch.grid.cluster_size;
}

unsigned cluster_rank() {
  return blockIdx.x - launch.first_block;
}

unsigned current_thread() {
  return cluster_rank() * launch.grid.threads + threadIdx.x;
}

unsigned cluster_threads() {
  return launch.grid.cluster_size * launch.grid.threads;
}

void sleep(const Place& place) {
  Thread& thread = launch.threads[current_thread()];
  thread.sleeps_in = &place;
  pause(thread);
  thread.sleeps_in = nullptr;
}

void wake(unsigned thread) {
  launch.can_run.insert(launch.threads[thread].rank);
}

namespace {

// Of the allocation that holds all of it, and where in it; none where there is none.
struct Found {
  const void* key;
  std::ptrdiff_t offset;
  bool is_found;
};

Found find_shared(const void* address, std::size_t size) {
  const char* const first = static_cast<const char*>(address);
  for (const auto& [key, memory] : current_block().shared) {
    const char* const start = memory.bytes.get();
    if (first >= start && first + size <= start + memory.size) return {key, first - start, true};
  }
  return {nullptr, 0, false};
}

}  // namespace

bool is_shared(const void* address, std::size_t size) {
  return find_shared(address, size).is_found;
}

void* peer_address(const void* mine, std::size_t size, unsigned rank) {
  const Found found = find_shared(mine, size);
  if (!found.is_found) fail("maps an address that is not in its shared memory");
  if (rank >= cluster_size()) fail("maps an address to a block that its cluster does not have");
  Block& peer = launch.blocks[rank];
  if (peer.num_done == launch.grid.threads) fail("reads the shared memory of a block that has ended");
  const auto memory = peer.shared.find(found.key);
  if (memory == peer.shared.end()) fail("reads shared memory that its block does not have yet");
  return memory->second.bytes.get() + found.offset;
}

}  // namespace sod::cuda_on_cpu
