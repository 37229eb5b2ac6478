// The whole operation on a small batch against long double; linked once with every clone of the CPU kernels,
// and once with the CUDA kernels.
#include <algorithm>
#include <initializer_list>
#include <limits>

#include "check.h"
#include "library.h"
#include "rows.h"
#include "sod/segments.h"

namespace {

using sod::Divergence;
using sod::DType;
using sod::test::Bytes;
using sod::test::decode;
using sod::test::encode;
using sod::test::Row;

// How rows lie in memory. Beyond the vocabulary there is more, which must not be read.
struct Layout {
  DType dtype;
  std::int64_t vocab;
  std::int64_t stride;
};

// Three rows of which the middle one belongs to no step and holds NaN.
struct Batch {
  Layout layout;
  Row student;
  Row teacher;
  Row reference;
  std::vector<std::int64_t> step_ids{1, -1, 0};
  std::vector<std::int64_t> sampled_ids;
};

enum class Content { kPlain, kFarFromZero, kWithHoles };

// Holes are logits of -inf: of the student, of the student and the teacher, of the teacher alone; and the
// first row begins with them. Never the sampled ids.
void make_holes(Batch& batch, std::int64_t row) {
  const float hole = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 1; i < batch.layout.vocab - 1; ++i) {
    const std::size_t at = static_cast<std::size_t>(row * batch.layout.stride + i);
    const bool is_start = row == 0 && i < batch.layout.vocab / 2;
    if (is_start || i % 5 < 2) batch.student[at] = hole;
    if (is_start || i % 5 == 1 || (row == 2 && i % 5 == 3)) batch.teacher[at] = hole;
    if (is_start || i % 5 == 0) batch.reference[at] = hole;
  }
}

Batch make_batch(const Layout& layout, double noise, Content content) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float shift = content == Content::kFarFromZero ? 1e4f : 0.0f;
  const std::size_t vocab = static_cast<std::size_t>(layout.vocab);
  Batch batch{layout,     Row(static_cast<std::size_t>(3 * layout.stride), nan),
              {},         {},
              {1, -1, 0}, {layout.vocab - 1, -100, 0}};
  batch.teacher = batch.reference = batch.student;
  for (const int row : {0, 2}) {
    const Row base = sod::test::random_row(vocab, 4.0, static_cast<unsigned>(row));
    const Row other = sod::test::random_row(vocab, noise, static_cast<unsigned>(row + 9));
    for (std::size_t i = 0; i < vocab; ++i) {
      const std::size_t at = static_cast<std::size_t>(row * layout.stride) + i;
      batch.student[at] = base[i] + shift;
      batch.teacher[at] = base[i] + other[i] - shift;
      batch.reference[at] = 0.5f * base[i] + shift;
    }
    if (content == Content::kWithHoles) make_holes(batch, row);
  }
  for (Row* all : {&batch.student, &batch.teacher, &batch.reference}) {
    *all = decode(encode(*all, layout.dtype), layout.dtype);
  }
  return batch;
}

struct Case {
  Divergence divergence;
  double temperature;
  double floor;
};

// 0 where an output does not depend on the reference.
struct Upstream {
  float token_kl;
  float log_prob;
  float entropy;
  float reference_kl;
};

struct Results {
  std::vector<float> tokens;
  std::vector<sod::RowState> state;
  std::vector<double> sums;
  Row gradient;
};

using Sweep = void (*)(int schedule, const sod::Problem&, const sod::BackwardInputs&,
                       const sod::ForwardOutputs&, const sod::Gradient&);

void sweep_twice(int schedule, const sod::Problem& problem, const sod::BackwardInputs& inputs,
                 const sod::ForwardOutputs& outputs, const sod::Gradient& gradient) {
  sod::test::call(sod::test::library::forward, schedule, problem, outputs);
  sod::test::call(sod::test::library::backward, schedule, problem, inputs, gradient);
}

#if !defined(SOD_TEST_CUDA)
void sweep_once(int schedule, const sod::Problem& problem, const sod::BackwardInputs& inputs,
                const sod::ForwardOutputs& outputs, const sod::Gradient& gradient) {
  sod::test::call(sod::test::library::forward_backward, schedule, problem, inputs, outputs, gradient);
}
#endif

Results run(const Batch& batch, const Case& c, const Upstream& upstream, Sweep sweep, int schedule,
            bool is_in_place) {
  const auto& [dtype, vocab, stride] = batch.layout;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const bool with_reference = upstream.reference_kl != 0;
  Bytes student = encode(batch.student, dtype), other = encode(Row(batch.student.size(), nan), dtype);
  const Bytes teacher = encode(batch.teacher, dtype), reference = encode(batch.reference, dtype);
  sod::Problem problem{};
  problem.rows = {dtype, 1, 3, vocab, c.temperature, batch.step_ids.data()};
  problem.student = {student.data(), 0, stride};
  problem.teacher = {teacher.data(), 0, stride};
  if (with_reference) problem.reference = {reference.data(), 0, stride};
  problem.divergence = c.divergence;
  problem.beta = 0.3;
  problem.min_log_prob = c.floor;
  problem.sampled_ids = batch.sampled_ids.data();
  Results results{
      std::vector<float>(15, nan), std::vector<sod::RowState>(3), std::vector<double>(10, nan), {}};
  float* t = results.tokens.data();
  const sod::ForwardOutputs outputs{
      t, with_reference ? t + 12 : nullptr, t + 3, t + 6, t + 9, results.state.data(), results.sums.data(),
      2};
  const std::vector<float> kl(3, upstream.token_kl), log_prob(3, upstream.log_prob),
      entropy(3, upstream.entropy), reference_kl(3, upstream.reference_kl);
  const sod::BackwardInputs inputs{kl.data(), with_reference ? reference_kl.data() : nullptr, log_prob.data(),
                                   entropy.data(), results.state.data()};
  Bytes& gradient = is_in_place ? student : other;
  sweep(schedule, problem, inputs, outputs, sod::Gradient{gradient.data(), stride});
  results.gradient = decode(gradient, dtype);
  return results;
}

bool is_close(double got, long double wanted, double tolerance) {
  const double truth = static_cast<double>(wanted);
  return got == truth || std::fabs(got - truth) <= tolerance * std::fmax(1.0, std::fabs(truth));
}

// A row of infinite divergence has no gradient from it.
long double gradient_of(const sod::test::Truth& truth, std::size_t at) {
  return std::isinf(truth.divergence) ? 0 : truth.gradient[at];
}

void check_row(const Batch& batch, const Case& c, const Upstream& upstream, const Results& results, int row) {
  const auto& [dtype, vocab, stride] = batch.layout;
  const auto row_of = [&, first = row * batch.layout.stride, size = batch.layout.vocab](const Row& all) {
    return Row(all.begin() + first, all.begin() + first + size);
  };
  const Row student = row_of(batch.student);
  const sod::test::Truth truth =
      sod::test::truth_of(student, row_of(batch.teacher), c.divergence, 0.3, c.temperature, c.floor);
  const sod::test::Truth second = sod::test::truth_of(student, row_of(batch.reference),
                                                      Divergence::kReverseKL, 0.3, c.temperature, c.floor);
  const std::size_t n = static_cast<std::size_t>(row);
  const std::size_t id = static_cast<std::size_t>(batch.sampled_ids[n]);
  constexpr double tolerance = sod::test::kTolerance;
  EXPECT(is_close(results.tokens[n], std::fmax(0.0L, truth.divergence), tolerance));
  EXPECT(is_close(results.tokens[3 + n], truth.log_p[id], tolerance));
  EXPECT(is_close(results.tokens[6 + n], std::fmax(truth.log_q[id], static_cast<long double>(c.floor)),
                  tolerance));
  EXPECT(is_close(results.tokens[9 + n], truth.entropy, 2 * tolerance));
  if (upstream.reference_kl != 0) {
    EXPECT(is_close(results.tokens[12 + n], std::fmax(0.0L, second.divergence), tolerance));
  }
  double error = 0, norm = 0;
  for (std::size_t at = 0; at < student.size(); ++at) {
    const long double p = std::exp(truth.log_p[at]);
    const long double wanted = upstream.token_kl * gradient_of(truth, at) +
                               upstream.reference_kl * gradient_of(second, at) +
                               upstream.entropy * truth.entropy_gradient[at] +
                               upstream.log_prob * ((at == id ? 1 : 0) - p) / c.temperature;
    const double got = results.gradient[n * static_cast<std::size_t>(stride) + at];
    error += (got - static_cast<double>(wanted)) * (got - static_cast<double>(wanted));
    norm += static_cast<double>(wanted * wanted);
  }
  EXPECT(std::sqrt(error) <=
         (2e-5 + sod::test::rounding_of(dtype)) * std::sqrt(norm) + sod::test::kGradientTolerance);
}

void expect_same(const Results& results, const Results& again, std::size_t num_tokens) {
  for (std::size_t i = 0; i < num_tokens; ++i) EXPECT(again.tokens[i] == results.tokens[i]);
  EXPECT(again.sums == results.sums);
  EXPECT(again.gradient == results.gradient);
}

void check(const Batch& batch, const Case& c, const Upstream& upstream) {
  const auto& [dtype, vocab, stride] = batch.layout;
  const Results results = run(batch, c, upstream, sweep_twice, 0, false);
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
    expect_same(results, run(batch, c, upstream, sweep_twice, schedule, schedule == 1), 3 * columns);
  }
#if !defined(SOD_TEST_CUDA)
  // And from one visit to each row.
  for (int schedule = 0; schedule < sod::test::kSchedules; ++schedule) {
    expect_same(results, run(batch, c, upstream, sweep_once, schedule, schedule == 1), 3 * columns);
  }
#endif
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
