// How the blocks of a cluster share out a row that they keep in their shared memory.
#pragma once

#include <cstdint>

#include "sod/portable.h"

namespace sod::cuda {

constexpr std::int64_t kPackBytes = 16;
// Every card that has clusters runs them up to this size.
constexpr int kLargestCluster = 8;

SOD_INLINE std::int64_t divide_up(std::int64_t x, std::int64_t y) {
  return (x + y - 1) / y;
}

// Every block gets as many whole packs; the last ones may find none left.
SOD_INLINE std::int64_t packs_per_block(std::int64_t row_packs, int cluster_size) {
  return divide_up(row_packs, cluster_size);
}

// The smallest cluster of 1, 2, 4 or 8 blocks that holds `num_rows` rows of so many packs, each block its
// part within `block_bytes`; 0 if none does.
inline int choose_cluster_size(std::int64_t row_packs, int num_rows, std::int64_t block_bytes) {
  for (int size = 1; size <= kLargestCluster; size *= 2) {
    if (num_rows * packs_per_block(row_packs, size) * kPackBytes <= block_bytes) return size;
  }
  return 0;
}

// A block's entries of a row: at `start`, a multiple of `width`, and `capacity` of them but for the row's
// end.
struct Part {
  std::int64_t start;
  std::int64_t size;
  std::int64_t capacity;
};

SOD_INLINE Part part_of_block(std::int64_t row_size, int width, int cluster_size, int rank) {
  const std::int64_t capacity = packs_per_block(divide_up(row_size, width), cluster_size) * width;
  const std::int64_t start = rank * capacity;
  if (start >= row_size) return {row_size, 0, capacity};
  return {start, row_size - start < capacity ? row_size - start : capacity, capacity};
}

// Where an entry of the row lies in the part; negative where it lies in another.
SOD_INLINE std::int64_t position_in(const Part& part, std::int64_t entry) {
  const std::int64_t position = entry - part.start;
  return position < part.size ? position : -1;
}

}  // namespace sod::cuda
