// Memory for large gradients and scratch buffers, whose pages outlive one use.
//
// A gradient over a vocabulary is hundreds of megabytes that nobody has touched yet. Fresh from the system,
// the first touch of its pages costs more than the gradient's arithmetic and memory traffic together, at
// every training step again. So the few mappings that were last given back are kept for the next ones.
// Meanwhile their pages are marked as free to take: the system reclaims them as soon as it is short of
// memory, so keeping them cannot exhaust it. New mappings ask for large pages.
#pragma once

#include <cstdint>

namespace sod::cpu {

// A mapping of at least `bytes`, contents undefined; takes over a kept one of about that size.
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

// Gives the kept mappings back to the system; returns their size in bytes.
std::int64_t release_kept_pages();

}  // namespace sod::cpu
