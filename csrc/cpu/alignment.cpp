#include "cpu/alignment.h"

namespace sod::cpu {

std::int64_t align(const AlignmentProblem& problem, const AlignmentOutputs& outputs) {
  UnitWriter units{outputs.student_spans, outputs.teacher_spans};
  for (std::int64_t segment = 0; segment < problem.num_segments; ++segment) {
    const std::int64_t* student = problem.student_segments + 2 * segment;
    const std::int64_t* teacher = problem.teacher_segments + 2 * segment;
    const std::int64_t before = units.count;
    const bool is_same = align_segment({&problem.student, problem.student_ids, student[0], student[1]},
                                       {&problem.teacher, problem.teacher_ids, teacher[0], teacher[1]},
                                       problem.is_truncated[segment] != 0, units);
    if (!is_same) return segment;
    outputs.segment_units[segment] = units.count - before;
  }
  return -1;
}

}  // namespace sod::cpu
