// The whole operation on a small batch against long double; linked once with every clone of the kernels.
#include <algorithm>
#include <initializer_list>
#include <limits>

#include "check.h"
#include "cpu/step_kl.h"
#include "rows.h"
#include "sod/segments.h"

namespace {

using sod::Divergence;
using sod::test::Row;

// Three rows of which the middle one belongs to no step and holds NaN.
struct Batch {
  std::int64_t vocab;
  std::int64_t stride;  // beyond the vocabulary there is more, which must not be read
  Row student;
  Row teacher;
  Row reference;
  std::vector<std::int64_t> step_ids{1, -1, 0};
  std::vector<std::int64_t> sampled_ids;
};

Batch make_batch(std::int64_t vocab, double noise, float shift) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::int64_t stride = vocab + 3;
  Batch batch{vocab,
              stride,
              Row(static_cast<std::size_t>(3 * stride), nan),
              {},
              {},
              {1, -1, 0},
              {vocab - 1, -100, 0}};
  batch.teacher = batch.reference = batch.student;
  for (const int row : {0, 2}) {
    const Row base = sod::test::random_row(static_cast<std::size_t>(vocab), 4.0, static_cast<unsigned>(row));
    const Row other =
        sod::test::random_row(static_cast<std::size_t>(vocab), noise, static_cast<unsigned>(row + 9));
    for (std::int64_t i = 0; i < vocab; ++i) {
      const std::size_t at = static_cast<std::size_t>(row * stride + i), from = static_cast<std::size_t>(i);
      batch.student[at] = base[from] + shift;
      batch.teacher[at] = base[from] + other[from] - shift;
      batch.reference[at] = 0.5f * base[from] + shift;
    }
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
  std::vector<float> gradient;
};

sod::Logits logits_of(const Row& all, std::int64_t stride) {
  return {all.data(), 0, stride};
}

sod::Problem problem_of(const Batch& batch, const Case& c, bool with_reference) {
  sod::Problem problem{};
  problem.rows = {sod::DType::kFloat32, 1, 3, batch.vocab, c.temperature, batch.step_ids.data()};
  problem.student = logits_of(batch.student, batch.stride);
  problem.teacher = logits_of(batch.teacher, batch.stride);
  if (with_reference) problem.reference = logits_of(batch.reference, batch.stride);
  problem.divergence = c.divergence;
  problem.beta = 0.3;
  problem.min_log_prob = c.floor;
  problem.sampled_ids = batch.sampled_ids.data();
  return problem;
}

Results run(Batch batch, const Case& c, const Upstream& upstream, int num_threads, bool is_in_place) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const bool with_reference = upstream.reference_kl != 0;
  const std::size_t size = static_cast<std::size_t>(3 * batch.stride);
  Results results{std::vector<float>(15, nan), std::vector<sod::RowState>(3), std::vector<double>(10, nan),
                  std::vector<float>(is_in_place ? 0 : size, nan)};
  float* t = results.tokens.data();
  const sod::Problem problem = problem_of(batch, c, with_reference);
  const sod::ForwardOutputs outputs{
      t, with_reference ? t + 12 : nullptr, t + 3, t + 6, t + 9, results.state.data(), results.sums.data(),
      2};
  sod::cpu::forward(problem, outputs, num_threads);
  const std::vector<float> kl(3, upstream.token_kl), log_prob(3, upstream.log_prob),
      entropy(3, upstream.entropy), reference_kl(3, upstream.reference_kl);
  const sod::BackwardInputs inputs{kl.data(), with_reference ? reference_kl.data() : nullptr, log_prob.data(),
                                   entropy.data(), results.state.data()};
  float* gradient = is_in_place ? batch.student.data() : results.gradient.data();
  sod::cpu::backward(problem, inputs, {gradient, batch.stride}, num_threads);
  if (is_in_place) results.gradient = batch.student;
  return results;
}

void check_row(const Batch& batch, const Case& c, const Upstream& upstream, const Results& results, int row) {
  const auto begin = [&](const Row& all) { return all.begin() + row * batch.stride; };
  const Row student(begin(batch.student), begin(batch.student) + batch.vocab);
  const Row teacher(begin(batch.teacher), begin(batch.teacher) + batch.vocab);
  const sod::test::Truth truth =
      sod::test::truth_of(student, teacher, c.divergence, 0.3, c.temperature, c.floor);
  const Row reference(begin(batch.reference), begin(batch.reference) + batch.vocab);
  const sod::test::Truth second =
      sod::test::truth_of(student, reference, Divergence::kReverseKL, 0.3, c.temperature, c.floor);
  const auto close = [](double got, long double wanted, double tolerance) {
    EXPECT(std::fabs(got - static_cast<double>(wanted)) <=
           tolerance * std::fmax(1.0, std::fabs(static_cast<double>(wanted))));
  };
  const std::size_t id = static_cast<std::size_t>(batch.sampled_ids[static_cast<std::size_t>(row)]);
  const long double reported = std::fmax(0.0L, truth.divergence);
  close(results.tokens[static_cast<std::size_t>(row)], reported, 1e-6);
  close(results.tokens[static_cast<std::size_t>(3 + row)], truth.log_p[id], 1e-6);
  close(results.tokens[static_cast<std::size_t>(6 + row)],
        std::fmax(truth.log_q[id], static_cast<long double>(c.floor)), 1e-6);
  close(results.tokens[static_cast<std::size_t>(9 + row)], truth.entropy, 2e-6);
  if (upstream.reference_kl != 0) {
    close(results.tokens[static_cast<std::size_t>(12 + row)], std::fmax(0.0L, second.divergence), 1e-6);
  }
  double error = 0, norm = 0;
  for (std::int64_t i = 0; i < batch.vocab; ++i) {
    const std::size_t at = static_cast<std::size_t>(i);
    const long double p = std::exp(truth.log_p[at]);
    const long double wanted = upstream.token_kl * truth.gradient[at] +
                               upstream.reference_kl * second.gradient[at] +
                               upstream.entropy * truth.entropy_gradient[at] +
                               upstream.log_prob * ((at == id ? 1 : 0) - p) / c.temperature;
    const double got = results.gradient[static_cast<std::size_t>(row * batch.stride + i)];
    error += (got - static_cast<double>(wanted)) * (got - static_cast<double>(wanted));
    norm += static_cast<double>(wanted * wanted);
  }
  EXPECT(std::sqrt(error) <= 2e-5 * std::sqrt(norm) + 4e-7);
}

void check(const Batch& batch, const Case& c, const Upstream& upstream) {
  const Results results = run(batch, c, upstream, 1, false);
  for (const int row : {0, 2}) check_row(batch, c, upstream, results, row);
  // The row of no step: 0 everywhere, and so are the columns beyond the vocabulary.
  const std::size_t columns = upstream.reference_kl != 0 ? 5 : 4;
  for (std::size_t column = 0; column < columns; ++column) EXPECT(results.tokens[3 * column + 1] == 0.0f);
  EXPECT(results.state[1].student_lse == 0.0);
  for (std::int64_t i = 0; i < 3 * batch.stride; ++i) {
    const bool must_be_zero = i / batch.stride == 1 || i % batch.stride >= batch.vocab;
    if (must_be_zero) EXPECT(results.gradient[static_cast<std::size_t>(i)] == 0.0f);
  }
  EXPECT(results.sums[0] == 1.0);
  EXPECT(results.sums[1] == static_cast<double>(results.tokens[2]));
  EXPECT(results.sums[sod::kStepColumns] == 1.0);
  EXPECT(results.sums[sod::kStepColumns + 4] == static_cast<double>(results.tokens[9]));
  // The same bits again, with another number of threads, and over the logits.
  for (const bool is_in_place : {false, true}) {
    const Results again = run(batch, c, upstream, 3, is_in_place);
    for (std::size_t i = 0; i < 3 * columns; ++i) EXPECT(again.tokens[i] == results.tokens[i]);
    EXPECT(again.sums == results.sums);
    EXPECT(again.gradient == results.gradient);
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
  for (const std::int64_t vocab : {1, 7, 256, 1000}) {
    for (const double noise : {0.05, 4.0}) {
      for (const float shift : {0.0f, 1e4f}) {
        const Batch batch = make_batch(vocab, noise, shift);
        for (const Case& c :
             {Case{Divergence::kReverseKL, 1.0, -INFINITY}, Case{Divergence::kReverseKL, 0.7, -6.0},
              Case{Divergence::kForwardKL, 1.0, -INFINITY}, Case{Divergence::kForwardKL, 0.7, -6.0},
              Case{Divergence::kJSD, 1.3, -INFINITY}}) {
          for (const Upstream& upstream : upstreams) check(batch, c, upstream);
        }
      }
    }
  }
  return sod::test::finish();
}
