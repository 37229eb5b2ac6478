#include "cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <new>
#include <vector>

namespace sod::cpu {
namespace {

constexpr std::uintptr_t kLargePage = 2u << 20;

struct Mapping {
  void* data = nullptr;
  std::int64_t capacity = 0;
};

// What one training step of the op from hidden states uses: logits of a chunk, the head's gradient, and what
// waits for step weights.
constexpr std::size_t kMostKept = 4;

// In the order in which they were given back. Leaked on purpose: tensors may outlive static objects at exit.
struct Keeper {
  Keeper() { kept.reserve(kMostKept + 1); }
  std::mutex mutex;
  std::vector<Mapping> kept;
};

Keeper& keeper() {
  static Keeper* const instance = new Keeper;
  return *instance;
}

void unmap(Mapping mapping) {
  if (mapping.data != nullptr) (void)munmap(mapping.data, static_cast<std::size_t>(mapping.capacity));
}

// A larger mapping is left to whom it fits.
bool fits(const Mapping& mapping, std::int64_t bytes) {
  return mapping.capacity >= bytes && mapping.capacity - bytes <= bytes / 2;
}

// Takes the smallest kept mapping that fits. If none does, the largest that is too small has been outgrown
// and goes back to the system.
Mapping take(std::int64_t bytes) {
  const std::lock_guard<std::mutex> lock(keeper().mutex);
  std::vector<Mapping>& kept = keeper().kept;
  auto best = kept.end(), outgrown = kept.end();
  for (auto each = kept.begin(); each != kept.end(); ++each) {
    if (fits(*each, bytes) && (best == kept.end() || each->capacity < best->capacity)) best = each;
    const bool is_less = each->capacity < bytes;
    if (is_less && (outgrown == kept.end() || each->capacity > outgrown->capacity)) outgrown = each;
  }
  const auto found = best != kept.end() ? best : outgrown;
  if (found == kept.end()) return {};
  const Mapping mapping = *found;
  const bool is_fit = found == best;
  kept.erase(found);
  if (is_fit) return mapping;
  unmap(mapping);
  return {};
}

// Keeps a mapping; where that is one too many, the oldest goes back to the system.
void keep(Mapping mapping) {
  const std::lock_guard<std::mutex> lock(keeper().mutex);
  std::vector<Mapping>& kept = keeper().kept;
  kept.push_back(mapping);
  if (kept.size() <= kMostKept) return;
  unmap(kept.front());
  kept.erase(kept.begin());
}

std::uintptr_t round_up(std::uintptr_t value, std::uintptr_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Maps one large page more than needed and cuts off what lies outside the aligned range.
Mapping map(std::int64_t bytes) {
  const std::uintptr_t page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t capacity = round_up(static_cast<std::uintptr_t>(bytes), page);
  void* const whole =
      mmap(nullptr, capacity + kLargePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) throw std::bad_alloc();
  const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(whole);
  const std::uintptr_t first = round_up(start, kLargePage);
  const std::uintptr_t end = first + capacity;
  if (first > start) (void)munmap(whole, first - start);
  (void)munmap(reinterpret_cast<void*>(end), start + kLargePage - first);
  void* const data = reinterpret_cast<void*>(first);
#if defined(MADV_HUGEPAGE)
  // Only a hint, and only for whole large pages: nothing beyond the request becomes resident.
  (void)madvise(data, capacity / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
  return {data, static_cast<std::int64_t>(capacity)};
}

}  // namespace

Pages::Pages(std::int64_t bytes) : bytes_(bytes) {
  Mapping mapping = take(bytes);
  if (mapping.data == nullptr) mapping = map(bytes);
  data_ = mapping.data;
  capacity_ = mapping.capacity;
}

Pages::~Pages() {
#if defined(MADV_FREE)
  const bool is_reclaimable = madvise(data_, static_cast<std::size_t>(capacity_), MADV_FREE) == 0;
#else
  const bool is_reclaimable = false;
#endif
  const Mapping mapping{data_, capacity_};
  // What the system could not take back in need is not kept.
  if (is_reclaimable) {
    keep(mapping);
  } else {
    unmap(mapping);
  }
}

std::int64_t release_kept_pages() {
  const std::lock_guard<std::mutex> lock(keeper().mutex);
  std::int64_t bytes = 0;
  for (const Mapping& mapping : keeper().kept) {
    bytes += mapping.capacity;
    unmap(mapping);
  }
  keeper().kept.clear();
  return bytes;
}

}  // namespace sod::cpu
