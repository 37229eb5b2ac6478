// The log-prob sweeps on a small batch against long double; linked once with every clone of the CPU kernels,
// and once with the CUDA kernels.
#include <initializer_list>
#include <limits>

#include "check.h"
#include "library.h"
#include "rows.h"

namespace {

using sod::DType;
using sod::test::Bytes;
using sod::test::decode;
using sod::test::encode;
using sod::test::Row;

constexpr std::int64_t kNumIds = 4;

// Three rows of which the middle one belongs to no step and holds NaN; one id twice, one absent.
struct Batch {
  DType dtype;
  std::int64_t vocab;
  std::int64_t stride;  // beyond the vocabulary there is NaN, which must not be read
  double temperature;
  Row student;
  std::vector<std::int64_t> step_ids{0, -1, 0};
  std::vector<std::int64_t> ids;
};

Batch make_batch(DType dtype, std::int64_t vocab, std::int64_t stride, double temperature, float shift) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::int64_t last = vocab - 1, far = std::int64_t{1} << 40;
  Batch batch{dtype,
              vocab,
              stride,
              temperature,
              Row(static_cast<std::size_t>(3 * stride), nan),
              {0, -1, 0},
              {last, 0, -1, last, far, far, far, far, 0, -7, 0, last / 2}};
  for (const int row : {0, 2}) {
    const Row base = sod::test::random_row(static_cast<std::size_t>(vocab), 4.0, static_cast<unsigned>(row));
    for (std::int64_t i = 0; i < vocab; ++i) {
      batch.student[static_cast<std::size_t>(row * stride + i)] = base[static_cast<std::size_t>(i)] + shift;
    }
  }
  batch.student = decode(encode(batch.student, dtype), dtype);
  return batch;
}

struct Results {
  std::vector<float> log_probs;
  std::vector<float> entropy;
  std::vector<float> gradient;
};

const std::vector<float> kGradients{0.5f, -1.0f, 9.0f, 0.25f, 1, 1, 1, 1, 0.75f, 9.0f, 0.0f, -2.0f};

Results run(const Batch& batch, float grad_entropy, int schedule, bool is_in_place) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Bytes student = encode(batch.student, batch.dtype);
  Bytes other = encode(Row(batch.student.size(), nan), batch.dtype);
  Results results{std::vector<float>(3 * kNumIds, nan), std::vector<float>(3, nan), {}};
  std::vector<sod::LogProbState> state(3);
  const sod::LogProbProblem problem{
      {batch.dtype, 1, 3, batch.vocab, batch.temperature, batch.step_ids.data()},
      {student.data(), 0, batch.stride},
      batch.ids.data(),
      kNumIds};
  const sod::LogProbOutputs outputs{results.log_probs.data(), results.entropy.data(), state.data()};
  sod::test::call(sod::test::library::log_probs_forward, schedule, problem, outputs);
  const std::vector<float> entropy(3, grad_entropy);
  std::vector<float> picked(kGradients.size(), nan);
  const sod::LogProbBackwardInputs inputs{kGradients.data(), entropy.data(), state.data(), picked.data()};
  Bytes& gradient = is_in_place ? student : other;
  sod::test::call(sod::test::library::log_probs_backward, schedule, problem, inputs,
                  sod::Gradient{gradient.data(), batch.stride});
  results.gradient = decode(gradient, batch.dtype);
  return results;
}

void check_row(const Batch& batch, float grad_entropy, const Results& results, int row) {
  const auto begin = batch.student.begin() + row * batch.stride;
  const Row student(begin, begin + batch.vocab);
  const sod::test::Truth truth =
      sod::test::truth_of(student, student, sod::Divergence::kReverseKL, 0.5, batch.temperature, -INFINITY);
  EXPECT(std::fabs(results.entropy[static_cast<std::size_t>(row)] - static_cast<double>(truth.entropy)) <=
         2 * sod::test::kTolerance * std::fmax(1.0, static_cast<double>(truth.entropy)));
  std::vector<long double> onehot(static_cast<std::size_t>(batch.vocab));
  long double total = 0;
  for (std::int64_t k = 0; k < kNumIds; ++k) {
    const std::size_t at = static_cast<std::size_t>(row * kNumIds + k);
    if (batch.ids[at] < 0) {
      EXPECT(results.log_probs[at] == 0.0f);
      continue;
    }
    const std::size_t id = static_cast<std::size_t>(batch.ids[at]);
    const double wanted = static_cast<double>(truth.log_p[id]);
    EXPECT(std::fabs(results.log_probs[at] - wanted) <=
           sod::test::kTolerance * std::fmax(1.0, std::fabs(wanted)));
    onehot[id] += kGradients[at];
    total += kGradients[at];
  }
  double error = 0, norm = 0;
  for (std::int64_t i = 0; i < batch.vocab; ++i) {
    const std::size_t at = static_cast<std::size_t>(i);
    const long double wanted = grad_entropy * truth.entropy_gradient[at] +
                               (onehot[at] - std::exp(truth.log_p[at]) * total) / batch.temperature;
    const double got = results.gradient[static_cast<std::size_t>(row * batch.stride + i)];
    error += (got - static_cast<double>(wanted)) * (got - static_cast<double>(wanted));
    norm += static_cast<double>(wanted * wanted);
  }
  EXPECT(std::sqrt(error) <=
         (2e-5 + sod::test::rounding_of(batch.dtype)) * std::sqrt(norm) + sod::test::kGradientTolerance);
}

void check(const Batch& batch, float grad_entropy) {
  const Results results = run(batch, grad_entropy, 0, false);
  for (const int row : {0, 2}) check_row(batch, grad_entropy, results, row);
  // The row of no step: 0 everywhere, and so are the columns beyond the vocabulary.
  EXPECT(results.entropy[1] == 0.0f);
  for (std::size_t k = 0; k < kNumIds; ++k) EXPECT(results.log_probs[kNumIds + k] == 0.0f);
  for (std::int64_t i = 0; i < 3 * batch.stride; ++i) {
    const bool must_be_zero = i / batch.stride == 1 || i % batch.stride >= batch.vocab;
    if (must_be_zero) EXPECT(results.gradient[static_cast<std::size_t>(i)] == 0.0f);
  }
  // The same bits again on other schedules, and over the logits.
  for (int schedule = 1; schedule < sod::test::kSchedules; ++schedule) {
    const Results again = run(batch, grad_entropy, schedule, schedule == 1);
    EXPECT(again.log_probs == results.log_probs);
    EXPECT(again.entropy == results.entropy);
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
  for (const std::int64_t vocab : {1, 7, 256, 1000}) {
    for (const float shift : {0.0f, 1e4f}) {
      for (const double temperature : {1.0, 0.7}) {
        const Batch batch = make_batch(DType::kFloat32, vocab, vocab + 3, temperature, shift);
        check(batch, 0.0f);
        check(batch, 0.4f);
      }
    }
  }
  // Rows that 16 bytes divide and rows that they do not, a whole number of packs and some entries more.
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    check(make_batch(dtype, 2500, 2504, 1.0, 0.0f), 0.4f);
    check(make_batch(dtype, 45, 48, 0.7, 0.0f), 0.4f);
    check(make_batch(dtype, 45, 45, 0.7, 0.0f), 0.4f);
  }
  return sod::test::finish();
}
