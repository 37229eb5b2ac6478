// Memory for large gradients, whose pages outlive one use.
//
// A gradient over a vocabulary is hundreds of megabytes that nobody has touched yet. Fresh from the system,
// the first touch of its pages costs more than the gradient's arithmetic and memory traffic together, at
// every training step again. So the mapping of the last gradient that was given back is kept for the next
// one. Meanwhile its pages are marked as free to take: the system reclaims them as soon as it is short of
// memory, so keeping them cannot exhaust it. New mappings ask for large pages.
#pragma once

#include <cstdint>

namespace sod::cpu {

// A mapping of at least `bytes`, contents undefined; takes over the kept one if it is large enough.
class Pages {
 public:
  // Throws std::bad_alloc.
  explicit Pages(std::int64_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  void* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  void* data_;
  std::int64_t bytes_;
  std::int64_t capacity_;
};

// Gives the kept mapping back to the system; returns its size in bytes.
std::int64_t release_kept_pages();

}  // namespace sod::cpu
