// Page size of a large, freshly allocated tensor.
#pragma once

#include <cstdint>

namespace sod::cpu {

// A gradient over a vocabulary is hundreds of megabytes that nobody has touched. With 4 KiB pages the first
// touch costs more than the gradient's arithmetic and memory traffic together. This asks the kernel for large
// pages inside the given range; it changes no contents, no address and no memory outside, and does nothing
// where the system has no such request, denies it, or the range is small.
void ask_for_large_pages(void* data, std::int64_t bytes);

}  // namespace sod::cpu
