// What the blocks of a cluster share, and bulk copies into a block's own shared memory.
//
// A copy is made when a thread waits for its barrier, no sooner: memory whose copy nobody has waited for
// still holds NaN.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fibers.h"

namespace sod::cuda_on_cpu {

// The cluster's barrier. Every thread of every block arrives, then waits.
void arrive_in_cluster();
void wait_in_cluster(const Place& place);

// A barrier in shared memory for the copies that one thread announces. It opens once.
void init_copy_barrier(const void* barrier);
void fence_async();
void expect_copies(const void* barrier, std::size_t bytes);
void bulk_copy(void* shared, const void* global, std::size_t bytes, const void* barrier);
void wait_for_copies(const void* barrier, const Place& place);

// ---- for run_grid

void forget_cluster();
bool has_unfinished_copies(unsigned rank);

}  // namespace sod::cuda_on_cpu
