// The whole operation on a small batch against long double; linked once with every clone of the CPU kernels,
// and once with the CUDA kernels.
#include <algorithm>
#include <initializer_list>
#include <limits>

#include "check.h"
#include "library.h"
#include "rows.h"
#include "sod/segments.h"
#include "step_kl_batch.h"

namespace {

using sod::Divergence;
using sod::DType;
using sod::test::Batch;
using sod::test::Case;
using sod::test::Content;
using sod::test::make_batch;
using sod::test::Results;
using sod::test::Row;
using sod::test::Upstream;

void check(const Batch& batch, const Case& c, const Upstream& upstream) {
  const auto& [dtype, vocab, stride] = batch.layout;
  const Results results = run(batch, c, upstream, sod::test::sweep_twice, 0, false);
  for (const int row : {0, 2}) check_row(batch, c, upstream, results, row);
  // The row of no step: 0 everywhere, and so are the columns beyond the vocabulary.
  const std::size_t columns = upstream.reference_kl != 0 ? 5 : 4;
  for (std::size_t column = 0; column < columns; ++column) EXPECT(results.tokens[3 * column + 1] == 0.0f);
  EXPECT(results.state[1].student_lse == 0.0);
  for (std::int64_t i = 0; i < 3 * stride; ++i) {
    const bool must_be_zero = i / stride == 1 || i % stride >= vocab;
    if (must_be_zero) EXPECT(results.gradient[static_cast<std::size_t>(i)] == 0.0f);
  }
  EXPECT(results.sums[0] == 1.0);
  EXPECT(results.sums[1] == static_cast<double>(results.tokens[2]));
  EXPECT(results.sums[sod::kStepColumns] == 1.0);
  EXPECT(results.sums[sod::kStepColumns + 4] == static_cast<double>(results.tokens[9]));
  // The same bits again on other schedules, and over the logits.
  for (int schedule = 1; schedule < sod::test::kSchedules; ++schedule) {
    expect_same(results, run(batch, c, upstream, sod::test::sweep_twice, schedule, schedule == 1),
                3 * columns);
  }
  // And from one visit to each row.
  for (int schedule = 0; schedule < sod::test::kSchedules; ++schedule) {
    expect_same(results, run(batch, c, upstream, sod::test::sweep_once, schedule, schedule == 1),
                3 * columns);
  }
}

// Steps that interleave, steps without rows, and more rows than threads of a block.
void check_step_sums() {
  constexpr std::int64_t rows = 300, vocab = 3, steps = 9;
  const Row student = sod::test::random_row(rows * vocab, 1.0, 1),
            teacher = sod::test::random_row(rows * vocab, 1.0, 2);
  std::vector<std::int64_t> runs, mixed;
  for (std::int64_t row = 0; row < rows; ++row) {
    runs.push_back(row < 10 ? -1 : row * 2 / rows * 2);
    mixed.push_back(row * row % 11 % steps - 1);
  }
  for (const std::vector<std::int64_t>& ids : {runs, mixed}) {
    sod::Problem problem{};
    problem.rows = {DType::kFloat32, 1, rows, vocab, 1.0, ids.data()};
    problem.student = {student.data(), 0, vocab};
    problem.teacher = {teacher.data(), 0, vocab};
    problem.min_log_prob = -INFINITY;
    for (int schedule = 0; schedule < sod::test::kSchedules; ++schedule) {
      std::vector<float> kl(rows), entropy(rows);
      std::vector<sod::RowState> state(rows);
      std::vector<double> sums(steps * sod::kStepColumns, std::numeric_limits<double>::quiet_NaN());
      const sod::ForwardOutputs outputs{kl.data(),      nullptr,      nullptr,     nullptr,
                                        entropy.data(), state.data(), sums.data(), steps};
      sod::test::call(sod::test::library::forward, schedule, problem, outputs);
      std::vector<double> wanted(sums.size());
      for (std::size_t row = 0; row < rows; ++row) {
        if (ids[row] < 0) continue;
        double* step = wanted.data() + ids[row] * sod::kStepColumns;
        step[0] += 1;
        step[1] += static_cast<double>(kl[row]);
        step[4] += static_cast<double>(entropy[row]);
      }
      for (std::size_t i = 0; i < sums.size(); ++i) EXPECT_CLOSE(sums[i], wanted[i], 1e-14);
    }
  }
}

}  // namespace

int main() {
#if defined(SOD_TEST_LEVEL)
  if (!__builtin_cpu_supports(SOD_TEST_LEVEL)) {
    std::puts("skipped: this processor does not have " SOD_TEST_LEVEL);
    return 77;
  }
#endif
  // Divergence alone, all, all but the divergence; then the reference alone and with the others.
  const Upstream upstreams[] = {{1.0f, 0, 0, 0},
                                {0.7f, -0.3f, 0.4f, 0},
                                {0, -0.3f, 0.4f, 0},
                                {0, 0, 0, 0.6f},
                                {0.7f, -0.3f, 0.4f, 0.6f}};
  const Case cases[] = {{Divergence::kReverseKL, 1.0, -INFINITY},
                        {Divergence::kReverseKL, 0.7, -6.0},
                        {Divergence::kForwardKL, 1.0, -INFINITY},
                        {Divergence::kForwardKL, 0.7, -6.0},
                        {Divergence::kJSD, 1.3, -INFINITY}};
  std::vector<Batch> batches;
  for (const std::int64_t vocab : {1, 7, 256, 1000}) {
    for (const double noise : {0.05, 4.0}) {
      for (const Content content : {Content::kPlain, Content::kFarFromZero}) {
        const bool is_near = noise < 1, is_far = content == Content::kFarFromZero;
        // Half of them where every thread is a fiber.
        if (sod::test::kIsEmulated && is_near == is_far) continue;
        batches.push_back(make_batch({DType::kFloat32, vocab, vocab + 3}, noise, content));
      }
    }
  }
  // Rows that 16 bytes divide and rows that they do not, a whole number of packs and some entries more.
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    batches.push_back(make_batch({dtype, 2500, 2504}, 1.0, Content::kPlain));
    batches.push_back(make_batch({dtype, 45, 48}, 1.0, Content::kWithHoles));
    batches.push_back(make_batch({dtype, 45, 45}, 1.0, Content::kWithHoles));
  }
  for (const Batch& batch : batches) {
    for (const Case& c : cases) {
      for (const Upstream& upstream : upstreams) check(batch, c, upstream);
    }
  }
  check_step_sums();
  return sod::test::finish();
}
