// A small batch for the sweeps of step_kl, and what must come out of them, against long double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "library.h"
#include "rows.h"

namespace sod::test {

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
inline void make_holes(Batch& batch, std::int64_t row) {
  const float hole = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 1; i < batch.layout.vocab - 1; ++i) {
    const std::size_t at = static_cast<std::size_t>(row * batch.layout.stride + i);
    const bool is_start = row == 0 && i < batch.layout.vocab / 2;
    if (is_start || i % 5 < 2) batch.student[at] = hole;
    if (is_start || i % 5 == 1 || (row == 2 && i % 5 == 3)) batch.teacher[at] = hole;
    if (is_start || i % 5 == 0) batch.reference[at] = hole;
  }
}

inline Batch make_batch(const Layout& layout, double noise, Content content) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float shift = content == Content::kFarFromZero ? 1e4f : 0.0f;
  const std::size_t vocab = static_cast<std::size_t>(layout.vocab);
  Batch batch{layout,     Row(static_cast<std::size_t>(3 * layout.stride), nan),
              {},         {},
              {1, -1, 0}, {layout.vocab - 1, -100, 0}};
  batch.teacher = batch.reference = batch.student;
  for (const int row : {0, 2}) {
    const Row base = random_row(vocab, 4.0, static_cast<unsigned>(row));
    const Row other = random_row(vocab, noise, static_cast<unsigned>(row + 9));
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
  std::vector<RowState> state;
  std::vector<double> sums;
  Row gradient;
};

using Sweep = void (*)(int schedule, const Problem&, const BackwardInputs&, const ForwardOutputs&,
                       const Gradient&);

inline void sweep_twice(int schedule, const Problem& problem, const BackwardInputs& inputs,
                        const ForwardOutputs& outputs, const Gradient& gradient) {
  call(library::forward, schedule, problem, outputs);
  call(library::backward, schedule, problem, inputs, gradient);
}

inline void sweep_once(int schedule, const Problem& problem, const BackwardInputs& inputs,
                       const ForwardOutputs& outputs, const Gradient& gradient) {
  call(library::forward_backward, schedule, problem, inputs, outputs, gradient);
}

inline Results run(const Batch& batch, const Case& c, const Upstream& upstream, Sweep sweep, int schedule,
                   bool is_in_place) {
  const auto& [dtype, vocab, stride] = batch.layout;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const bool with_reference = upstream.reference_kl != 0;
  Bytes student = encode(batch.student, dtype), other = encode(Row(batch.student.size(), nan), dtype);
  const Bytes teacher = encode(batch.teacher, dtype), reference = encode(batch.reference, dtype);
  Problem problem{};
  problem.rows = {dtype, 1, 3, vocab, c.temperature, batch.step_ids.data()};
  problem.student = {student.data(), 0, stride};
  problem.teacher = {teacher.data(), 0, stride};
  if (with_reference) problem.reference = {reference.data(), 0, stride};
  problem.divergence = c.divergence;
  problem.beta = 0.3;
  problem.min_log_prob = c.floor;
  problem.sampled_ids = batch.sampled_ids.data();
  Results results{std::vector<float>(15, nan), std::vector<RowState>(3), std::vector<double>(10, nan), {}};
  float* t = results.tokens.data();
  const ForwardOutputs outputs{
      t, with_reference ? t + 12 : nullptr, t + 3, t + 6, t + 9, results.state.data(), results.sums.data(),
      2};
  const std::vector<float> kl(3, upstream.token_kl), log_prob(3, upstream.log_prob),
      entropy(3, upstream.entropy), reference_kl(3, upstream.reference_kl);
  const BackwardInputs inputs{kl.data(), with_reference ? reference_kl.data() : nullptr, log_prob.data(),
                              entropy.data(), results.state.data()};
  Bytes& gradient = is_in_place ? student : other;
  sweep(schedule, problem, inputs, outputs, Gradient{gradient.data(), stride});
  results.gradient = decode(gradient, dtype);
  return results;
}

inline bool is_close(double got, long double wanted, double tolerance) {
  const double truth = static_cast<double>(wanted);
  return got == truth || std::fabs(got - truth) <= tolerance * std::fmax(1.0, std::fabs(truth));
}

// A row of infinite divergence has no gradient from it.
inline long double gradient_of(const Truth& truth, std::size_t at) {
  return std::isinf(truth.divergence) ? 0 : truth.gradient[at];
}

inline void check_row(const Batch& batch, const Case& c, const Upstream& upstream, const Results& results,
                      int row) {
  const auto& [dtype, vocab, stride] = batch.layout;
  const auto row_of = [&, first = row * batch.layout.stride, size = batch.layout.vocab](const Row& all) {
    return Row(all.begin() + first, all.begin() + first + size);
  };
  const Row student = row_of(batch.student);
  const Truth truth = truth_of(student, row_of(batch.teacher), c.divergence, 0.3, c.temperature, c.floor);
  const Truth second =
      truth_of(student, row_of(batch.reference), Divergence::kReverseKL, 0.3, c.temperature, c.floor);
  const std::size_t n = static_cast<std::size_t>(row);
  const std::size_t id = static_cast<std::size_t>(batch.sampled_ids[n]);
  constexpr double tolerance = kTolerance;
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
  EXPECT(std::sqrt(error) <= (2e-5 + rounding_of(dtype)) * std::sqrt(norm) + kGradientTolerance);
}

inline void expect_same(const Results& results, const Results& again, std::size_t num_tokens) {
  for (std::size_t i = 0; i < num_tokens; ++i) EXPECT(again.tokens[i] == results.tokens[i]);
  EXPECT(again.sums == results.sums);
  EXPECT(again.gradient == results.gradient);
}

}  // namespace sod::test
