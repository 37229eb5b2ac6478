#include "cpu/memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sod::cpu {

void ask_for_large_pages(void* data, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kLargePage = 2u << 20;
  constexpr std::int64_t kWorthwhile = 8 << 20;
  if (bytes < kWorthwhile) return;
  const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (start + kLargePage - 1) / kLargePage * kLargePage;
  const std::uintptr_t last = (start + static_cast<std::uintptr_t>(bytes)) / kLargePage * kLargePage;
  // Only a hint: a refusal leaves ordinary pages.
  if (last > first) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace sod::cpu
