#include "cpu/lists.h"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace sod::cpu {
namespace {

constexpr std::int64_t kEmpty = -1;

// A hash table, used again for each list; at most a quarter full, since a search that goes on is a branch
// that the processor guesses wrong.
class IdSet {
 public:
  explicit IdSet(std::int64_t num_ids) {
    while ((std::int64_t{1} << bits_) < 4 * num_ids) ++bits_;
    places_.resize(std::size_t{1} << bits_);
  }

  void clear() { std::fill(places_.begin(), places_.end(), kEmpty); }

  // Whether the id was not there yet.
  bool insert(std::int64_t id) {
    // The upper bits of a product with 2^64 over the golden ratio: neighbouring ids land far apart.
    std::size_t place =
        static_cast<std::size_t>((static_cast<std::uint64_t>(id) * 0x9E3779B97F4A7C15u) >> (64 - bits_));
    for (; places_[place] != kEmpty; place = (place + 1) & (places_.size() - 1)) {
      if (places_[place] == id) return false;
    }
    places_[place] = id;
    return true;
  }

 private:
  int bits_ = 1;
  std::vector<std::int64_t> places_;
};

bool repeats(const std::int64_t* ids, std::int64_t num_ids, IdSet& seen) {
  seen.clear();
  return !std::all_of(ids, ids + num_ids, [&](std::int64_t id) { return id < 0 || seen.insert(id); });
}

}  // namespace

bool any_repeats(const IdLists& lists, [[maybe_unused]] int num_threads) {
  bool found = false;
#pragma omp parallel num_threads(num_threads) reduction(|| : found)
  {
    IdSet seen(lists.num_ids);
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < lists.num_lists; ++i) {
      found = found || repeats(lists.ids + i * lists.num_ids, lists.num_ids, seen);
    }
  }
  return found;
}

}  // namespace sod::cpu
