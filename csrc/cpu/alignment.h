// Alignment of all segments of a batch on the CPU.
#pragma once

#include <cstdint>

#include "sod/byte_alignment.h"

namespace sod::cpu {

struct AlignmentProblem {
  TokenTable student;
  TokenTable teacher;
  const std::int64_t* student_ids;
  const std::int64_t* teacher_ids;
  const std::int64_t* student_segments;  // (num_segments, 2) of [start, end) into the ids
  const std::int64_t* teacher_segments;
  const std::uint8_t* is_truncated;  // (num_segments)
  std::int64_t num_segments;
};

struct AlignmentOutputs {
  std::int64_t* student_spans;  // room for the sum over segments of min(n, m) pairs
  std::int64_t* teacher_spans;
  std::int64_t* segment_units;  // (num_segments) units of each
};

// Returns the first segment whose texts differ, or -1. Allocates nothing.
std::int64_t align(const AlignmentProblem& problem, const AlignmentOutputs& outputs);

}  // namespace sod::cpu
