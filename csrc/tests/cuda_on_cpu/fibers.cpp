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
};

// Threads that wait for each other.
struct Meeting {
  unsigned first;  // thread of the block
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

struct Launch {
  std::string name;
  unsigned num_threads;
  const std::function<void()>* kernel;
  std::vector<Thread> threads;
  std::vector<unsigned> thread_of_rank;
  Ranks can_run;
  std::vector<Meeting> meetings;  // of the warps, then that of the block
  std::map<const void*, std::unique_ptr<char[]>> shared;
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

std::string to_text(unsigned thread) {
  return launch.name + ", block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(thread);
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
  launch.threads[threadIdx.x].is_done = true;
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
  threadIdx.x = number;
  if (_setjmp(launch.scheduler) == 0) {
    begin_switch(thread.stack.get(), kStackBytes);
    if (!thread.has_started) start(number);
    _longjmp(thread.context, 1);
  }
  end_switch_to_main();
}

// ---- one block

void start_block() {
  const unsigned count = launch.num_threads;
  launch.failure.clear();
  launch.shared.clear();
  launch.thread_of_rank = order_of(count);
  for (unsigned rank = 0; rank < count; ++rank) launch.threads[launch.thread_of_rank[rank]].rank = rank;
  for (Thread& thread : launch.threads) thread.has_started = thread.is_done = false;
  launch.can_run.fill(count);
  launch.meetings.clear();
  for (unsigned first = 0; first < count; first += kWarp) {
    launch.meetings.push_back({first, std::min(kWarp, count - first), 0, {}});
  }
  launch.meetings.push_back({0, count, 0, {}});
}

std::string describe_deadlock(std::size_t num_done) {
  std::string text = launch.name + ", block " + std::to_string(blockIdx.x) +
                     ": threads wait for ever: " + std::to_string(num_done) + " have ended";
  for (const Meeting& meeting : launch.meetings) {
    if (meeting.arrived == 0) continue;
    text += "; " + std::to_string(meeting.arrived) + " of threads " + std::to_string(meeting.first) + " to " +
            std::to_string(meeting.first + meeting.size - 1) + " wait in " + to_text(meeting.place);
  }
  return text;
}

void run_block() {
  start_block();
  std::size_t num_done = 0;
  for (int rank; (rank = launch.can_run.take_first()) >= 0;) {
    const unsigned number = launch.thread_of_rank[static_cast<std::size_t>(rank)];
    resume(number);
    if (!launch.failure.empty()) throw std::runtime_error(launch.failure);
    num_done += launch.threads[number].is_done;
  }
  if (num_done != launch.num_threads) throw std::runtime_error(describe_deadlock(num_done));
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

void run_grid(const std::string& name, unsigned blocks, unsigned threads,
              const std::function<void()>& kernel) {
  launch.name = name;
  launch.num_threads = threads;
  launch.kernel = &kernel;
  if (launch.threads.size() < threads) launch.threads.resize(threads);
  for (const unsigned block : order_of(blocks)) {
    blockIdx.x = block;
    run_block();
  }
  launch.shared.clear();
}

std::uint64_t meet(Group group, const Place& place, std::uint64_t value, int source) {
  Thread& thread = launch.threads[threadIdx.x];
  Meeting& meeting = group == Group::kBlock ? launch.meetings.back() : launch.meetings[threadIdx.x / kWarp];
  if (source >= static_cast<int>(meeting.size)) fail("reads from a thread that does not exist");
  if (meeting.arrived == 0) meeting.place = place;
  if (!is_same(meeting.place, place)) {
    launch.failure =
        to_text(threadIdx.x) + " is in " + to_text(place) + " while others wait in " + to_text(meeting.place);
    leave();
  }
  thread.value = value;
  thread.source = source;
  if (++meeting.arrived == meeting.size) release(meeting);
  pause(thread);
  return thread.result;
}

void* shared_memory(const void* key, std::size_t size) {
  std::unique_ptr<char[]>& memory = launch.shared[key];
  if (memory == nullptr) {
    memory.reset(new char[size]);
    std::fill_n(memory.get(), size, '\xff');
  }
  return memory.get();
}

void fail(const char* what) {
  launch.failure = to_text(threadIdx.x) + " " + what;
  leave();
}

}  // namespace sod::cuda_on_cpu
