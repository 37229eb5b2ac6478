#include "cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <new>
#include <utility>

namespace sod::cpu {
namespace {

constexpr std::uintptr_t kLargePage = 2u << 20;

struct Mapping {
  void* data = nullptr;
  std::int64_t capacity = 0;
};

// One mapping is kept, never more. Leaked on purpose: tensors may outlive static objects at exit.
struct Keeper {
  std::mutex mutex;
  Mapping kept;
};

Keeper& keeper() {
  static Keeper* const instance = new Keeper;
  return *instance;
}

Mapping swap_kept(Mapping mapping) {
  const std::lock_guard<std::mutex> lock(keeper().mutex);
  return std::exchange(keeper().kept, mapping);
}

void unmap(Mapping mapping) {
  if (mapping.data != nullptr) (void)munmap(mapping.data, static_cast<std::size_t>(mapping.capacity));
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
  Mapping mapping = swap_kept({});
  if (mapping.capacity < bytes) {
    unmap(mapping);
    mapping = map(bytes);
  }
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
  unmap(is_reclaimable ? swap_kept(mapping) : mapping);
}

std::int64_t release_kept_pages() {
  const Mapping mapping = swap_kept({});
  unmap(mapping);
  return mapping.capacity;
}

}  // namespace sod::cpu
