// Divergences over the categories of lists. All in double and per token, K numbers at a time in the cache.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

#include "cpu/lists.h"
#include "cpu/step_kl.h"
#include "sod/exp.h"
#include "sod/softmax_state.h"

namespace sod::cpu {
namespace {

constexpr double kNoMass = -static_cast<double>(kInfinity);

// Both sides over the same categories; -inf on both where there is no category, which then adds nothing.
struct Categories {
  const double* log_p;
  const double* log_q;
  const double* p;
  std::int64_t count;
};

// max(x, bound), where a NaN in x survives.
SOD_INLINE double at_least(double x, double bound) {
  return x < bound ? bound : x;
}

// log(x / y) for logarithms, where x without mass has none to compare: (-inf) - (-inf) is no number.
SOD_INLINE double log_ratio_of(double log_x, double log_y) {
  return log_x == kNoMass ? 0.0 : log_x - log_y;
}

SOD_CLONES double reverse_kl(Categories c, double floor, double* slopes) {
  double total = 0, largest = kNoMass;
#pragma omp simd reduction(+ : total) reduction(max : largest)
  for (std::int64_t i = 0; i < c.count; ++i) {
    const double log_ratio = log_ratio_of(c.log_p[i], at_least(c.log_q[i], floor));
    const double term = c.p[i] * log_ratio;
    slopes[i] = term + c.p[i];
    total += term;
    largest = log_ratio > largest ? log_ratio : largest;
  }
  // Said outright, as the mass may have rounded to 0.
  return largest == -kNoMass ? largest : total;
}

SOD_CLONES double forward_kl(Categories c, double floor, double* slopes) {
  double total = 0, largest = kNoMass;
#pragma omp simd reduction(+ : total) reduction(max : largest)
  for (std::int64_t i = 0; i < c.count; ++i) {
    const double q = exp_of(c.log_q[i]);
    const double log_ratio = log_ratio_of(c.log_q[i], at_least(c.log_p[i], floor));
    // Under the floor the student's side does not move.
    slopes[i] = c.log_p[i] <= floor ? 0.0 : -q;
    total += q * log_ratio;
    largest = log_ratio > largest ? log_ratio : largest;
  }
  return largest == -kNoMass ? largest : total;
}

double jensen_shannon(Categories c, double beta, double* slopes) {
  const double weight_p = std::log1p(-beta), weight_q = std::log(beta);
  double total = 0;
  for (std::int64_t i = 0; i < c.count; ++i) {
    const double log_p = c.log_p[i] + weight_p, log_q = c.log_q[i] + weight_q;
    const double larger = log_p > log_q ? log_p : log_q, smaller = log_p > log_q ? log_q : log_p;
    const double mixture = larger == kNoMass ? kNoMass : larger + std::log1p(exp_of(smaller - larger));
    slopes[i] = (1.0 - beta) * c.p[i] * log_ratio_of(c.log_p[i], mixture);
    total += slopes[i] + beta * exp_of(c.log_q[i]) * log_ratio_of(c.log_q[i], mixture);
  }
  return total;
}

double divergence_of(Categories c, const ListProblem& problem, double* slopes) {
  switch (problem.divergence) {
    case Divergence::kReverseKL:
      return reverse_kl(c, problem.min_log_prob, slopes);
    case Divergence::kForwardKL:
      return forward_kl(c, problem.min_log_prob, slopes);
    case Divergence::kJSD:
      break;
  }
  return jensen_shannon(c, problem.beta, slopes);
}

// The student's log-probabilities of the ids that are there, and how many there are.
SOD_CLONES std::int64_t read_student(const float* log_probs, const std::int64_t* ids, std::int64_t n,
                                     double* log_p) {
  std::int64_t count = 0;
#pragma omp simd reduction(+ : count)
  for (std::int64_t i = 0; i < n; ++i) {
    const bool is_there = ids[i] >= 0;
    log_p[i] = is_there ? static_cast<double>(log_probs[i]) : kNoMass;
    count += is_there ? 1 : 0;
  }
  return count;
}

// Exponentials, and their sum.
SOD_CLONES double exponentials(const double* x, std::int64_t n, double* out) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) {
    out[i] = exp_of(x[i]);
    sum += out[i];
  }
  return sum;
}

SOD_CLONES void add_scaled(const double* x, std::int64_t n, double factor, double* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) out[i] += factor * x[i];
}

// Numbers of one token, used again for each.
struct Scratch {
  explicit Scratch(std::int64_t num_ids)
      : log_p(static_cast<std::size_t>(num_ids)), log_q(log_p.size()), p(log_p.size()) {}
  std::vector<double> log_p, log_q, p;
};

// Takes the log-probabilities given that the token is in the list; false where the list has no mass at all.
bool renormalise(std::vector<double>& log_probs, std::vector<double>& shares) {
  const double largest = *std::max_element(log_probs.begin(), log_probs.end());
  if (largest == kNoMass) return false;
  for (double& x : log_probs) x -= largest;
  const std::int64_t n = static_cast<std::int64_t>(log_probs.size());
  const double lse = std::log(exponentials(log_probs.data(), n, shares.data()));
  for (double& x : log_probs) x -= lse;
  return true;
}

// Of both sides given that the token is in the list; +inf where a side has no mass to renormalise.
double renormalised_divergence(const ListProblem& problem, const double* teacher, Scratch& scratch,
                               double* slopes) {
  const std::int64_t n = problem.num_ids;
  std::copy(teacher, teacher + n, scratch.log_q.begin());
  const bool has_student = renormalise(scratch.log_p, scratch.p);
  const bool has_teacher = renormalise(scratch.log_q, scratch.p);
  exponentials(scratch.log_p.data(), n, scratch.p.data());
  const double value =
      divergence_of({scratch.log_p.data(), scratch.log_q.data(), scratch.p.data(), n}, problem, slopes);
  add_scaled(scratch.p.data(), n, -std::accumulate(slopes, slopes + n, 0.0), slopes);
  return has_student && has_teacher ? value : -kNoMass;
}

// Of the ids as they are, and with "bucket" of everything else as one more category.
double plain_divergence(const ListProblem& problem, const double* teacher, double teacher_tail, bool has_tail,
                        Scratch& scratch, double* slopes) {
  const std::int64_t n = problem.num_ids;
  const double mass = exponentials(scratch.log_p.data(), n, scratch.p.data());
  const double value = divergence_of({scratch.log_p.data(), teacher, scratch.p.data(), n}, problem, slopes);
  if (!has_tail) return value;
  const double rest = at_least(1.0 - mass, problem.unit), log_rest = std::log(rest);
  double slope = 0;
  const double of_rest = divergence_of({&log_rest, &teacher_tail, &rest, 1}, problem, &slope);
  // A tail that counts as the unit does not move; one that is no number spoils the slopes too.
  if (!(rest <= problem.unit)) add_scaled(scratch.p.data(), n, -slope / rest, slopes);
  return value + of_rest;
}

double compare_list(const ListProblem& problem, std::int64_t token, Scratch& scratch, double* slopes) {
  const std::int64_t n = problem.num_ids;
  const std::int64_t* ids = problem.teacher.ids + token * n;
  const double* teacher = problem.teacher.log_probs + token * n;
  const std::int64_t count =
      read_student(problem.log_probs + token * problem.stride, ids, n, scratch.log_p.data());
  double value = 0;
  if (count == 0) {
    std::fill(slopes, slopes + n, 0.0);
  } else if (problem.tail == Tail::kRenormalise) {
    value = renormalised_divergence(problem, teacher, scratch, slopes);
  } else {
    const bool has_tail = problem.tail == Tail::kBucket && count < problem.vocab_size;
    value = plain_divergence(problem, teacher, problem.teacher.tail[token], has_tail, scratch, slopes);
  }
  if (value == -kNoMass) std::fill(slopes, slopes + n, 0.0);
  return problem.tail == Tail::kDrop ? value : at_least(value, 0.0);
}

// Of a token outside the list that of the tail, which holds it.
double teacher_log_prob(const ListProblem& problem, std::int64_t token) {
  const std::int64_t* ids = problem.teacher.ids + token * problem.num_ids;
  const std::int64_t* const end = ids + problem.num_ids;
  const std::int64_t* const found = std::find(ids, end, problem.sampled_ids[token]);
  const double log_prob = found == end ? problem.teacher.tail[token]
                                       : problem.teacher.log_probs[token * problem.num_ids + (found - ids)];
  return at_least(log_prob, problem.min_log_prob);
}

}  // namespace

void compare_lists(const ListProblem& problem, const ForwardOutputs& outputs, double* slopes,
                   [[maybe_unused]] int num_threads) {
#pragma omp parallel num_threads(num_threads)
  {
    Scratch scratch(problem.num_ids);
#pragma omp for schedule(static)
    for (std::int64_t token = 0; token < problem.num_tokens; ++token) {
      const bool is_active = problem.step_ids[token] >= 0;
      double* const own = slopes + token * problem.num_ids;
      if (!is_active) std::fill(own, own + problem.num_ids, 0.0);
      const double value = is_active ? compare_list(problem, token, scratch, own) : 0.0;
      outputs.token_kl[token] = static_cast<float>(value);
      if (problem.sampled_ids == nullptr) continue;
      outputs.teacher_log_probs[token] =
          is_active ? static_cast<float>(teacher_log_prob(problem, token)) : 0.0f;
    }
  }
  sum_steps(problem.step_ids, problem.num_tokens, outputs);
}

}  // namespace sod::cpu
