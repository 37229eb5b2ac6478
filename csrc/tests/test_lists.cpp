// Reading lists and comparing over them, against long double; linked once with every clone of the CPU
// kernels.
#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/lists.h"

namespace {

using sod::Divergence;
using sod::cpu::Tail;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kUnit = 1.2e-7;
constexpr std::int64_t kVocab = 1000;

struct Lists {
  std::vector<std::int64_t> ids;
  std::vector<double> log_probs, tail;

  sod::cpu::ReadLists addresses() { return {ids.data(), log_probs.data(), tail.data()}; }
};

struct Given {
  std::int64_t num_ids;
  std::vector<std::int64_t> ids;
  std::vector<double> log_probs;
  std::vector<std::int64_t> step_ids{};

  bool read(Lists& lists, int num_threads = 1, bool is_float = false) {
    const std::int64_t num_lists = static_cast<std::int64_t>(ids.size()) / num_ids;
    if (step_ids.empty()) step_ids.assign(static_cast<std::size_t>(num_lists), 0);
    lists = {std::vector<std::int64_t>(ids.size(), 99), std::vector<double>(ids.size(), kNan),
             std::vector<double>(static_cast<std::size_t>(num_lists), kNan)};
    const std::vector<float> narrow(log_probs.begin(), log_probs.end());
    return sod::cpu::read_lists(
        {num_lists, num_ids, kVocab, step_ids.data(), ids.data(), is_float ? nullptr : log_probs.data(),
         is_float ? narrow.data() : nullptr, kUnit, 1.02},
        lists.addresses(), num_threads);
  }
};

void check_reading() {
  Lists lists;
  const double half = std::log(0.5), tenth = std::log(0.1);
  // The second list repeats an id, which its larger entry stands for, has none at one place, and NaN there.
  Given given{4, {7, 0, 999, 3, 5, -4, 5, 8}, {half, tenth, -kInfinity, tenth, tenth, kNan, half, tenth}};
  EXPECT(given.read(lists));
  EXPECT((lists.ids == std::vector<std::int64_t>{7, 0, 999, 3, -1, -1, 5, 8}));
  EXPECT((lists.log_probs ==
          std::vector<double>{half, tenth, -kInfinity, tenth, -kInfinity, -kInfinity, half, tenth}));
  EXPECT_CLOSE(lists.tail[0], std::log(0.3), 1e-14);
  EXPECT_CLOSE(lists.tail[1], std::log(0.4), 1e-14);
  // Of equal entries the first stands; a mass that rounds to 1 leaves the unit.
  given = {3, {2, 2, 2}, {-3.0, 0.0, 0.0}};
  EXPECT(given.read(lists, 1, true));
  EXPECT((lists.ids == std::vector<std::int64_t>{-1, 2, -1}));
  EXPECT(lists.tail[0] == std::log(kUnit));
  // What cannot be meant; a list of a token in no step is not read.
  for (const Given& wrong : {Given{2, {1, kVocab}, {half, tenth}}, Given{2, {1, 2}, {half, kNan}},
                             Given{2, {1, 2}, {half, std::log(0.53)}}, Given{2, {1, 2}, {half, kInfinity}}}) {
    given = wrong;
    EXPECT(!given.read(lists));
    given.step_ids = {-1};
    EXPECT(given.read(lists));
    EXPECT((lists.ids == std::vector<std::int64_t>{-1, -1}));
    EXPECT(lists.log_probs[0] == -kInfinity && lists.log_probs[1] == -kInfinity && lists.tail[0] == 0.0);
  }
}

// Ids next to each other and far apart, for the hash; in the last list one repeats at the very end.
void check_repetitions() {
  constexpr std::int64_t kNumLists = 50, kNumIds = 200;
  for (const std::int64_t step : {std::int64_t{1}, std::int64_t{5}}) {
    Given given{kNumIds, {}, std::vector<double>(kNumLists * kNumIds, std::log(1e-3))};
    for (std::int64_t i = 0; i < kNumLists * kNumIds; ++i) given.ids.push_back(step * (i % kNumIds));
    Lists lists, again;
    EXPECT(given.read(lists));
    EXPECT(lists.ids == given.ids);
    given.ids.back() = 0;
    EXPECT(given.read(lists) && given.read(again, 3));
    EXPECT(lists.ids.back() == -1 && lists.log_probs.back() == -kInfinity);
    EXPECT(std::count(lists.ids.begin(), lists.ids.end(), -1) == 1);
    EXPECT(lists.ids == again.ids && lists.log_probs == again.log_probs && lists.tail == again.tail);
  }
}

struct Comparison {
  std::vector<float> token_kl, sampled, teacher_sampled, entropy;
  std::vector<double> slopes, step_sums;
};

// The student's log-probabilities have that of the sampled id, 1, behind them.
Comparison compare(const std::vector<float>& student, Lists& lists, std::int64_t num_ids, Tail tail,
                   Divergence divergence, double floor, int num_threads) {
  const std::size_t count = lists.tail.size();
  std::vector<std::int64_t> step_ids(count, 0), sampled_ids(count, 1);
  step_ids[1] = -1;
  Comparison out{std::vector<float>(count, NAN),
                 std::vector<float>(count, -2.0f),
                 std::vector<float>(count, NAN),
                 std::vector<float>(count, 0.5f),
                 std::vector<double>(lists.ids.size(), kNan),
                 std::vector<double>(5, kNan)};
  sod::cpu::compare_lists(
      {static_cast<std::int64_t>(count), num_ids, kVocab, step_ids.data(), lists.addresses(), student.data(),
       num_ids + 1, sampled_ids.data(), tail, divergence, 0.3, floor, kUnit},
      {out.token_kl.data(), nullptr, out.sampled.data(), out.teacher_sampled.data(), out.entropy.data(),
       nullptr, out.step_sums.data(), 1},
      out.slopes.data(), num_threads);
  return out;
}

using Row = std::vector<long double>;

// The textbook formula over whole vectors of log-probabilities.
long double truth(const Row& log_p, const Row& log_q, Divergence divergence, long double floor) {
  long double total = 0;
  for (std::size_t i = 0; i < log_p.size(); ++i) {
    const long double p = std::exp(log_p[i]), q = std::exp(log_q[i]), m = std::log(0.7L * p + 0.3L * q);
    const auto bounded = [&](long double x) { return std::max(x, floor); };
    if (divergence == Divergence::kReverseKL && p > 0) total += p * (log_p[i] - bounded(log_q[i]));
    if (divergence == Divergence::kForwardKL && q > 0) total += q * (log_q[i] - bounded(log_p[i]));
    if (divergence != Divergence::kJSD) continue;
    total += (p > 0 ? 0.7L * p * (log_p[i] - m) : 0) + (q > 0 ? 0.3L * q * (log_q[i] - m) : 0);
  }
  return total;
}

// Of one list; the student's log-probability of entry `moved` is larger by `by`.
long double truth_of_list(const float* student, Lists& lists, std::int64_t list, std::int64_t num_ids,
                          Tail tail, Divergence divergence, double floor, std::int64_t moved = 0,
                          long double by = 0) {
  Row log_p, log_q;
  long double mass_p = 0, mass_q = 0;
  for (std::int64_t k = 0; k < num_ids; ++k) {
    const std::size_t at = static_cast<std::size_t>(list * num_ids + k);
    if (lists.ids[at] < 0) continue;
    log_p.push_back(static_cast<long double>(student[k]) + (k == moved ? by : 0));
    log_q.push_back(lists.log_probs[at]);
    mass_p += std::exp(log_p.back());
    mass_q += std::exp(log_q.back());
  }
  if (tail == Tail::kBucket) {
    log_p.push_back(std::log(1 - mass_p));
    log_q.push_back(lists.tail[static_cast<std::size_t>(list)]);
  }
  for (std::size_t i = 0; tail == Tail::kRenormalise && i < log_p.size(); ++i) {
    log_p[i] -= std::log(mass_p);
    log_q[i] -= std::log(mass_q);
  }
  return truth(log_p, log_q, divergence, floor);
}

void check_comparison(std::int64_t num_ids, Tail tail, Divergence divergence, double floor) {
  constexpr std::int64_t kNumLists = 9;
  std::mt19937 random(7);
  std::uniform_real_distribution<double> share(0.2, 1.0);
  Given given{num_ids, {}, {}};
  std::vector<float> student;
  for (std::int64_t i = 0; i < kNumLists * num_ids; ++i) {
    given.ids.push_back(i % num_ids == 3 ? -1 : i % num_ids);
    given.log_probs.push_back(std::log(0.9 * share(random) / static_cast<double>(num_ids)));
    student.push_back(std::log(0.8f * static_cast<float>(share(random)) / static_cast<float>(num_ids)));
    if (i % num_ids == num_ids - 1) student.push_back(-2.0f);
  }
  Lists lists;
  EXPECT(given.read(lists));
  const Comparison got = compare(student, lists, num_ids, tail, divergence, floor, 1);
  double sum = 0;
  for (std::int64_t list = 0; list < kNumLists; ++list) {
    const std::size_t at = static_cast<std::size_t>(list);
    const float* const own = student.data() + list * (num_ids + 1);
    const bool is_active = list != 1;
    const auto wanted = [&](std::int64_t moved, long double by) {
      return truth_of_list(own, lists, list, num_ids, tail, divergence, floor, moved, by);
    };
    // Under a floor the formula may go below 0, which only "drop" reports.
    const double formula = is_active ? static_cast<double>(wanted(0, 0)) : 0.0;
    const double value = tail == Tail::kDrop ? formula : std::max(formula, 0.0);
    sum += static_cast<double>(got.token_kl[at]);
    EXPECT(std::fabs(static_cast<double>(got.token_kl[at]) - value) <= 1e-7 * std::fabs(value) + 1e-12);
    for (std::int64_t k = 0; k < num_ids; ++k) {
      const long double step = 1e-6L;
      const long double slope = is_active && lists.ids[static_cast<std::size_t>(list * num_ids + k)] >= 0
                                    ? (wanted(k, step) - wanted(k, -step)) / (2 * step)
                                    : 0.0L;
      EXPECT(std::fabs(got.slopes[static_cast<std::size_t>(list * num_ids + k)] -
                       static_cast<double>(slope)) < 1e-10);
    }
    const double log_prob =
        num_ids == 1 ? lists.tail[at] : lists.log_probs[at * static_cast<std::size_t>(num_ids) + 1];
    EXPECT(got.teacher_sampled[at] == (is_active ? static_cast<float>(std::max(log_prob, floor)) : 0.0f));
  }
  EXPECT(got.step_sums[0] == kNumLists - 1);
  EXPECT_CLOSE(got.step_sums[1], sum, 1e-14);
  EXPECT_CLOSE(got.step_sums[3], 2.0 * (kNumLists - 1), 1e-14);
  const Comparison again = compare(student, lists, num_ids, tail, divergence, floor, 3);
  EXPECT(again.token_kl == got.token_kl && again.slopes == got.slopes && again.step_sums == got.step_sums);
}

// One list of two ids, half of the teacher's mass on the first.
Comparison compare_pair(std::vector<float> student, std::vector<double> teacher, Tail tail,
                        Divergence divergence) {
  Given given{2, {0, 1}, teacher};
  Lists lists;
  EXPECT(given.read(lists));
  student.push_back(-2.0f);
  std::vector<std::int64_t> step_ids{0}, sampled_ids{0};
  Comparison out{{NAN}, {-2.0f}, {NAN}, {0.5f}, {kNan, kNan}, std::vector<double>(5, kNan)};
  sod::cpu::compare_lists({1, 2, kVocab, step_ids.data(), lists.addresses(), student.data(), 3,
                           sampled_ids.data(), tail, divergence, 0.3, -kInfinity, kUnit},
                          {out.token_kl.data(), nullptr, out.sampled.data(), out.teacher_sampled.data(),
                           out.entropy.data(), nullptr, out.step_sums.data(), 1},
                          out.slopes.data(), 1);
  return out;
}

void check_edges() {
  const double half = std::log(0.5);
  const float quarter = std::log(0.25f), none = -std::numeric_limits<float>::infinity();
  for (const Tail tail : {Tail::kBucket, Tail::kRenormalise, Tail::kDrop}) {
    // Mass where the other side has none: infinite by definition, without slopes, also if it rounds to 0.
    for (const float log_p : {quarter, -800.0f}) {
      const Comparison out = compare_pair({quarter, log_p}, {half, -kInfinity}, tail, Divergence::kReverseKL);
      EXPECT(out.token_kl[0] == std::numeric_limits<float>::infinity());
      EXPECT(out.slopes[0] == 0.0 && out.slopes[1] == 0.0);
    }
    EXPECT(std::isinf(compare_pair({quarter, none}, {half, half}, tail, Divergence::kForwardKL).token_kl[0]));
    EXPECT(
        std::isfinite(compare_pair({quarter, none}, {half, -kInfinity}, tail, Divergence::kJSD).token_kl[0]));
    const Comparison spoilt = compare_pair({quarter, NAN}, {half, half - 1.0}, tail, Divergence::kReverseKL);
    EXPECT(std::isnan(spoilt.token_kl[0]));
  }
  // No mass to renormalise.
  EXPECT(std::isinf(
      compare_pair({none, none}, {half, half}, Tail::kRenormalise, Divergence::kReverseKL).token_kl[0]));
  // A student whose list rounds to 1 has a tail of the unit, which does not move.
  const Comparison full =
      compare_pair({0.0f, -30.0f}, {half, half - 1.0}, Tail::kBucket, Divergence::kReverseKL);
  EXPECT_CLOSE(full.slopes[0], 1.0 - half, 1e-12);
}

}  // namespace

int main() {
#if defined(SOD_TEST_LEVEL)
  if (!__builtin_cpu_supports(SOD_TEST_LEVEL)) {
    std::puts("skipped: this processor does not have " SOD_TEST_LEVEL);
    return 77;
  }
#endif
  check_reading();
  check_repetitions();
  for (const std::int64_t num_ids : {1, 3, 8, 37}) {
    for (const Tail tail : {Tail::kBucket, Tail::kRenormalise, Tail::kDrop}) {
      check_comparison(num_ids, tail, Divergence::kReverseKL, -kInfinity);
      check_comparison(num_ids, tail, Divergence::kForwardKL, -kInfinity);
      check_comparison(num_ids, tail, Divergence::kJSD, -kInfinity);
      check_comparison(num_ids, tail, Divergence::kReverseKL, -2.3);
      check_comparison(num_ids, tail, Divergence::kForwardKL, -2.3);
    }
  }
  check_edges();
  return sod::test::finish();
}
