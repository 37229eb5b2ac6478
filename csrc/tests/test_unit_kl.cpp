// The unit sweeps on a small batch against long double; linked once with every clone of the kernels.
#include <initializer_list>
#include <limits>

#include "check.h"
#include "cpu/step_kl.h"
#include "cpu/unit_kl.h"
#include "rows.h"
#include "sod/softmax_state.h"

namespace {

using sod::Divergence;
using sod::test::Row;

constexpr double kTemperature = 0.8;

// Three student rows: a unit with a span column that covers the first two, and one row in no unit. The shared
// columns are every second one of the student, and the same backwards of the teacher.
struct Batch {
  std::int64_t vocab;
  Row student, teacher;
  std::vector<std::int32_t> student_columns, teacher_columns;
  std::vector<std::int64_t> student_rows{0, -1}, teacher_rows{0, 0}, excluded{1, -1, -1, -1};
  std::vector<double> span_scores{1.5, 2.25, -INFINITY, -INFINITY};
};

Batch make_batch(std::int64_t vocab) {
  Batch batch{vocab, {}, {}, {}, {}};
  batch.student = sod::test::random_row(static_cast<std::size_t>(3 * vocab), 3.0, 1);
  batch.teacher = sod::test::random_row(static_cast<std::size_t>(vocab), 3.0, 2);
  for (std::int64_t v = 0; v < vocab; v += 2) {
    batch.student_columns.push_back(static_cast<std::int32_t>(v));
    batch.teacher_columns.push_back(static_cast<std::int32_t>(vocab - 1 - v));
  }
  return batch;
}

sod::UnitProblem make_problem(const Batch& batch, Divergence divergence) {
  return {sod::DType::kFloat32,
          2,
          static_cast<std::int64_t>(batch.student_columns.size()),
          0,
          {batch.student.data(), batch.vocab, batch.vocab, batch.student_columns.data(),
           batch.student_rows.data()},
          {batch.teacher.data(), batch.vocab, batch.vocab, batch.teacher_columns.data(),
           batch.teacher_rows.data()},
          batch.excluded.data(),
          batch.span_scores.data(),
          divergence,
          0.3,
          kTemperature};
}

struct Results {
  std::vector<float> unit_kl, unit_entropy, gradient;
};

Results run(const Batch& batch, Divergence divergence, int num_threads) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Results results{std::vector<float>(2, nan), std::vector<float>(2, nan),
                  std::vector<float>(static_cast<std::size_t>(3 * batch.vocab), nan)};
  std::vector<sod::RowState> state(2);
  const sod::UnitProblem problem = make_problem(batch, divergence);
  sod::cpu::unit_forward(problem, {results.unit_kl.data(), results.unit_entropy.data(), state.data()},
                         num_threads);
  const std::vector<float> upstream{0.5f, 7.0f};
  const std::vector<std::int64_t> row_units{0, -1, -1}, labels{3, 2, 0};
  const std::vector<double> dense{0.25, 0.0, 0.0}, onehot{0.125, -0.5, 0.0}, row_lse{10.0, 0.0, 0.0};
  sod::cpu::unit_backward(problem,
                          {upstream.data(), state.data(), row_units.data(), dense.data(), onehot.data(),
                           row_lse.data(), labels.data(), 3, batch.vocab},
                          {results.gradient.data(), batch.vocab}, num_threads);
  return results;
}

void check(const Batch& batch, Divergence divergence) {
  const Results results = run(batch, divergence, 1);
  const std::size_t vocab = static_cast<std::size_t>(batch.vocab);
  const std::size_t size = batch.student_columns.size();
  Row student, teacher;
  for (std::size_t c = 0; c < size; ++c) {
    const bool is_out = static_cast<std::int64_t>(c) == batch.excluded[0];
    student.push_back(is_out ? -sod::kInfinity
                             : batch.student[static_cast<std::size_t>(batch.student_columns[c])]);
    teacher.push_back(is_out ? -sod::kInfinity
                             : batch.teacher[static_cast<std::size_t>(batch.teacher_columns[c])]);
  }
  student.push_back(static_cast<float>(batch.span_scores[0]));
  teacher.push_back(static_cast<float>(batch.span_scores[1]));
  // Excluded columns are left out of the truth, which knows no -inf - -inf.
  student.erase(student.begin() + 1);
  teacher.erase(teacher.begin() + 1);
  const sod::test::Truth truth =
      sod::test::truth_of(student, teacher, divergence, 0.3, kTemperature, -INFINITY);
  EXPECT_CLOSE(results.unit_kl[0], static_cast<double>(truth.divergence), 1e-5);
  EXPECT_CLOSE(results.unit_entropy[0], static_cast<double>(truth.entropy), 1e-5);
  EXPECT(results.unit_kl[1] == 0.0f && results.unit_entropy[1] == 0.0f);
  for (std::size_t v = 0; v < vocab; ++v) {
    const double p = std::exp(static_cast<double>(batch.student[v]) / kTemperature - 10.0);
    double wanted = 0.25 * p / kTemperature + (v == 3 ? 0.125 / kTemperature : 0.0);
    const std::size_t c = v / 2;
    if (v % 2 == 0 && c != 1) wanted += 0.5 * static_cast<double>(truth.gradient[c > 1 ? c - 1 : c]);
    EXPECT(std::fabs(results.gradient[v] - wanted) <= 2e-6 * std::fmax(1.0, std::fabs(wanted)));
  }
  for (std::size_t i = vocab; i < 3 * vocab; ++i) {
    const float wanted = i == vocab + 2 ? static_cast<float>(-0.5 / kTemperature) : 0.0f;
    EXPECT(results.gradient[i] == wanted);
  }
  const Results again = run(batch, divergence, 3);
  EXPECT(again.unit_kl == results.unit_kl);
  EXPECT(again.gradient == results.gradient);
}

// Every column in its place and no span: the bits of step_kl.
void check_identity(Divergence divergence) {
  Batch batch = make_batch(700);
  batch.student_columns.clear();
  for (std::int32_t v = 0; v < 700; ++v) batch.student_columns.push_back(v);
  batch.teacher_columns = batch.student_columns;
  batch.excluded.assign(4, -1);
  batch.span_scores.assign(4, -INFINITY);
  const Results results = run(batch, divergence, 1);
  float token_kl = 0, entropy = 0;
  sod::RowState state{};
  std::vector<double> sums(5);
  const std::vector<std::int64_t> step_ids{0};
  sod::Problem rows{};
  rows.rows = {sod::DType::kFloat32, 1, 1, 700, kTemperature, step_ids.data()};
  rows.student = {batch.student.data(), 0, 700};
  rows.teacher = {batch.teacher.data(), 0, 700};
  rows.divergence = divergence;
  rows.beta = 0.3;
  rows.min_log_prob = -INFINITY;
  sod::cpu::forward(rows, {&token_kl, nullptr, nullptr, nullptr, &entropy, &state, sums.data(), 1}, 1);
  EXPECT(results.unit_kl[0] == token_kl);
  EXPECT(results.unit_entropy[0] == entropy);
}

}  // namespace

int main() {
#if defined(SOD_TEST_LEVEL)
  if (!__builtin_cpu_supports(SOD_TEST_LEVEL)) {
    std::puts("skipped: this processor does not have " SOD_TEST_LEVEL);
    return 77;
  }
#endif
  for (const Divergence divergence : {Divergence::kReverseKL, Divergence::kForwardKL, Divergence::kJSD}) {
    for (const std::int64_t vocab : {8, 513, 1000}) check(make_batch(vocab), divergence);
    check_identity(divergence);
  }
  return sod::test::finish();
}
