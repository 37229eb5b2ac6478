#include "cpu/lists.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "sod/exp.h"
#include "sod/softmax_state.h"

namespace sod::cpu {
namespace {

constexpr std::int64_t kAbsent = -1;
constexpr double kNoMass = -static_cast<double>(kInfinity);

// A hash table of places in a list, used again for each list; at most a quarter full, since a search that
// goes on is a branch that the processor guesses wrong.
class PlaceOfId {
 public:
  explicit PlaceOfId(std::int64_t num_ids) {
    while ((std::int64_t{1} << bits_) < 4 * num_ids) ++bits_;
    places_.resize(std::size_t{1} << bits_);
  }

  void clear() { std::fill(places_.begin(), places_.end(), kEmpty); }

  // Where `ids[place]` is for the first time: the place that holds it, `place` itself if none does yet.
  std::int32_t& find(const std::int64_t* ids, std::int32_t place) {
    // The upper bits of a product with 2^64 over the golden ratio: neighbouring ids land far apart.
    std::size_t at = static_cast<std::size_t>(
        (static_cast<std::uint64_t>(ids[place]) * 0x9E3779B97F4A7C15u) >> (64 - bits_));
    while (places_[at] != kEmpty && ids[places_[at]] != ids[place]) at = (at + 1) & (places_.size() - 1);
    if (places_[at] == kEmpty) places_[at] = place;
    return places_[at];
  }

 private:
  static constexpr std::int32_t kEmpty = -1;
  int bits_ = 1;
  std::vector<std::int32_t> places_;
};

template <class T>
void read_entries(const T* log_probs, const std::int64_t* ids, std::int64_t num_ids, std::int64_t* out_ids,
                  double* out_log_probs) {
  for (std::int64_t k = 0; k < num_ids; ++k) {
    const bool is_there = ids[k] >= 0;
    out_ids[k] = is_there ? ids[k] : kAbsent;
    out_log_probs[k] = is_there ? static_cast<double>(log_probs[k]) : kNoMass;
  }
}

// Leaves of every id the entry with the largest log-probability, of equal ones the first.
void drop_repetitions(const std::int64_t* given, std::int64_t num_ids, std::int64_t* ids, double* log_probs,
                      PlaceOfId& seen) {
  seen.clear();
  for (std::int64_t k = 0; k < num_ids; ++k) {
    if (given[k] < 0) continue;
    const std::int32_t place = static_cast<std::int32_t>(k);
    std::int32_t& best = seen.find(given, place);
    if (best == place) continue;
    const std::int32_t worse = log_probs[k] > log_probs[best] ? best : place;
    best = worse == place ? best : place;
    ids[worse] = kAbsent;
    log_probs[worse] = kNoMass;
  }
}

SOD_CLONES double mass_of(const double* log_probs, std::int64_t n) {
  double mass = 0;
#pragma omp simd reduction(+ : mass)
  for (std::int64_t i = 0; i < n; ++i) mass += exp_of(log_probs[i]);
  return mass;
}

SOD_CLONES std::int64_t largest_id(const std::int64_t* ids, std::int64_t n) {
  std::int64_t largest = kAbsent;
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < n; ++i) largest = ids[i] > largest ? ids[i] : largest;
  return largest;
}

bool read_list(const GivenLists& given, const ReadLists& lists, std::int64_t list, PlaceOfId& seen) {
  const std::int64_t n = given.num_ids, first = list * n;
  std::int64_t* ids = lists.ids + first;
  double* log_probs = lists.log_probs + first;
  if (given.step_ids[list] < 0) {
    std::fill(ids, ids + n, kAbsent);
    std::fill(log_probs, log_probs + n, kNoMass);
    lists.tail[list] = 0.0;
    return true;
  }
  if (given.log_probs != nullptr) {
    read_entries(given.log_probs + first, given.ids + first, n, ids, log_probs);
  } else {
    read_entries(given.float_log_probs + first, given.ids + first, n, ids, log_probs);
  }
  drop_repetitions(given.ids + first, n, ids, log_probs, seen);
  const double mass = mass_of(log_probs, n);
  lists.tail[list] = std::log(std::max(1.0 - mass, given.unit));
  return mass <= given.most_mass && largest_id(ids, n) < given.vocab_size;
}

}  // namespace

bool read_lists(const GivenLists& given, const ReadLists& lists, [[maybe_unused]] int num_threads) {
  bool is_good = true;
#pragma omp parallel num_threads(num_threads) reduction(&& : is_good)
  {
    PlaceOfId seen(given.num_ids);
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < given.num_lists; ++i) is_good = read_list(given, lists, i, seen) && is_good;
  }
  return is_good;
}

}  // namespace sod::cpu
