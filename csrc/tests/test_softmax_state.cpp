#include <algorithm>

#include "check.h"
#include "rows.h"
#include "sod/divergence.h"
#include "sod/row_result.h"
#include "sod/softmax_state.h"

namespace {

using sod::Exponent;
using sod::PairState;
using sod::WeightedBy;
using sod::test::Row;

const Exponent kUnit = sod::make_exponent(1.0);

template <WeightedBy weighting>
PairState<double> state_of(const Row& student, const Row& teacher, std::size_t from, std::size_t to) {
  PairState<double> state;
  for (std::size_t i = from; i < to; ++i) {
    state.student_max = sod::larger(state.student_max, student[i]);
    state.teacher_max = sod::larger(state.teacher_max, teacher[i]);
  }
  for (std::size_t i = from; i < to; ++i) {
    const float a = student[i] - sod::base_of(state.student_max);
    const float b = teacher[i] - sod::base_of(state.teacher_max);
    const sod::KLEntry entry = weighting == WeightedBy::kStudent
                                   ? sod::reverse_kl_entry(a, b, -sod::kInfinity, kUnit)
                                   : sod::forward_kl_entry(a, b, -sod::kInfinity, kUnit);
    sod::add(state, PairState<float>{0, 0, entry.student_weight, entry.teacher_weight, entry.student_moment,
                                     entry.difference, entry.above_floor});
  }
  return state;
}

void expect_same(const PairState<double>& x, const PairState<double>& y, double tolerance) {
  EXPECT(x.student_max == y.student_max);
  EXPECT(x.teacher_max == y.teacher_max);
  EXPECT_CLOSE(x.student_sum, y.student_sum, tolerance);
  EXPECT_CLOSE(x.teacher_sum, y.teacher_sum, tolerance);
  EXPECT_CLOSE(x.student_moment, y.student_moment, tolerance);
  EXPECT_CLOSE(x.difference, y.difference, tolerance);
  EXPECT_CLOSE(x.above_floor, y.above_floor, tolerance);
}

template <WeightedBy weighting>
void check(const Row& student, const Row& teacher, sod::Divergence divergence) {
  const std::size_t size = student.size(), one = size / 3, two = 2 * size / 3;
  const auto x = state_of<weighting>(student, teacher, 0, one);
  const auto y = state_of<weighting>(student, teacher, one, two);
  const auto z = state_of<weighting>(student, teacher, two, size);
  const auto left = sod::merge<weighting>(sod::merge<weighting>(x, y, kUnit), z, kUnit);
  const auto right = sod::merge<weighting>(x, sod::merge<weighting>(y, z, kUnit), kUnit);
  expect_same(left, right, 1e-13);
  // The empty state is neutral, and merging commutes.
  expect_same(sod::merge<weighting>(x, PairState<double>{}, kUnit), x, 0.0);
  expect_same(sod::merge<weighting>(PairState<double>{}, x, kUnit), x, 0.0);
  expect_same(sod::merge<weighting>(x, y, kUnit), sod::merge<weighting>(y, x, kUnit), 1e-15);
  const sod::test::Truth truth = sod::test::truth_of(student, teacher, divergence, 0.5, 1.0, -INFINITY);
  const sod::RowState state = sod::finish_kl(left, divergence, 1.0);
  EXPECT_CLOSE(state.divergence, static_cast<double>(truth.divergence), 2e-6);
  EXPECT_CLOSE(state.student_entropy, static_cast<double>(truth.entropy), 2e-6);
}

// The reference's sums, gathered beside those of a pair whose bases move with every part of the row, are
// those that the reference has as a pair's teacher.
void check_reference(const Row& student, const Row& reference) {
  const std::size_t size = student.size();
  PairState<double> pair;
  sod::ReferenceState<double> state;
  for (std::size_t part = 0; part < 3; ++part) {
    const std::size_t from = part * size / 3, to = (part + 1) * size / 3;
    float student_max = pair.student_max, max = state.max;
    for (std::size_t i = from; i < to; ++i) {
      student_max = sod::larger(student_max, student[i]);
      max = sod::larger(max, reference[i]);
    }
    sod::rebase(state, pair, student_max, max, kUnit);
    sod::rebase<WeightedBy::kStudent>(pair, student_max, student_max, kUnit);
    for (std::size_t i = from; i < to; ++i) {
      const float a = student[i] - sod::base_of(student_max), c = reference[i] - sod::base_of(max);
      const sod::ReferenceEntry entry = sod::reference_entry(a, c, -sod::kInfinity, kUnit);
      state.sum += static_cast<double>(entry.weight);
      state.difference += static_cast<double>(entry.difference);
      pair.student_sum += static_cast<double>(sod::exp_of(a, kUnit));
    }
  }
  const auto wanted = state_of<WeightedBy::kStudent>(student, reference, 0, size);
  EXPECT(state.max == wanted.teacher_max);
  EXPECT_CLOSE(state.sum, wanted.teacher_sum, 2e-6);
  sod::RowState row{};
  sod::finish_reference(row, state, pair.student_sum, 1.0);
  const sod::test::Truth truth =
      sod::test::truth_of(student, reference, sod::Divergence::kReverseKL, 0.5, 1.0, -INFINITY);
  EXPECT_CLOSE(row.reference_kl, static_cast<double>(truth.divergence), 2e-6);
}

void check_both(const Row& student, const Row& teacher) {
  check<WeightedBy::kStudent>(student, teacher, sod::Divergence::kReverseKL);
  check<WeightedBy::kTeacher>(student, teacher, sod::Divergence::kForwardKL);
  check_reference(student, teacher);
}

}  // namespace

int main() {
  Row student = sod::test::random_row(300, 4.0, 1);
  Row teacher = sod::test::random_row(300, 4.0, 2);
  check_both(student, teacher);

  // Rows far from 0 and from each other: differences are relative to each row's own largest entry.
  Row shifted = student;
  for (float& x : shifted) x += 1e4f;
  check_both(shifted, teacher);

  // A first third that is -inf in the student, then in both, has no largest entry of its own.
  Row masked = student;
  std::fill(masked.begin(), masked.begin() + 100, -INFINITY);
  Row masked_teacher = teacher;
  std::fill(masked_teacher.begin(), masked_teacher.begin() + 100, -INFINITY);
  check_both(masked, masked_teacher);
  check<WeightedBy::kStudent>(masked, teacher, sod::Divergence::kReverseKL);
  check<WeightedBy::kTeacher>(student, masked_teacher, sod::Divergence::kForwardKL);

  // Mass where the other side has none: infinite, and it stays so when a larger base makes the factor 0.
  PairState<double> infinite = state_of<WeightedBy::kStudent>(student, masked_teacher, 0, 50);
  EXPECT(infinite.difference == INFINITY);
  sod::rebase<WeightedBy::kStudent>(infinite, 1e5f, 1e5f, kUnit);
  EXPECT(infinite.difference == INFINITY);
  EXPECT(infinite.student_sum == 0.0);

  // A row without any finite entry has no distribution.
  const Row nothing(300, -INFINITY);
  const auto none = state_of<WeightedBy::kStudent>(nothing, teacher, 0, 300);
  EXPECT(std::isnan(sod::finish_kl(none, sod::Divergence::kReverseKL, 1.0).divergence));
  const auto none_teacher = state_of<WeightedBy::kStudent>(student, nothing, 0, 300);
  EXPECT(std::isnan(sod::finish_kl(none_teacher, sod::Divergence::kReverseKL, 1.0).divergence));
  return sod::test::finish();
}
