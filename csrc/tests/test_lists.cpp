#include <cstdint>
#include <vector>

#include "check.h"
#include "cpu/lists.h"

namespace {

bool any_repeats(const std::vector<std::int64_t>& ids, std::int64_t num_ids, int num_threads = 1) {
  const auto num_lists = static_cast<std::int64_t>(ids.size()) / num_ids;
  return sod::cpu::any_repeats({ids.data(), num_lists, num_ids}, num_threads);
}

}  // namespace

int main() {
  const std::int64_t large = std::int64_t{1} << 62;
  EXPECT(!any_repeats({}, 3));
  EXPECT(!any_repeats({7}, 1));
  EXPECT(!any_repeats({0, 1, large, 2, 1, 0}, 3));
  EXPECT(any_repeats({0, 1, large, 2, 1, 2}, 3));
  EXPECT(any_repeats({large, 5, large}, 3));
  // Absent entries do not repeat each other.
  EXPECT(!any_repeats({-1, -1, 4, -5, -5, -5}, 3));
  EXPECT(any_repeats({4, -1, 4}, 3));

  // Lists of consecutive and of far apart ids, one of which repeats its first id at the very end.
  constexpr std::int64_t kNumLists = 50, kNumIds = 200;
  for (const std::int64_t step : {std::int64_t{1}, std::int64_t{1024}, std::int64_t{1} << 40}) {
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 0; i < kNumLists * kNumIds; ++i) ids.push_back(step * (i % kNumIds));
    for (const int num_threads : {1, 3}) {
      EXPECT(!any_repeats(ids, kNumIds, num_threads));
      std::vector<std::int64_t> repeating = ids;
      repeating[static_cast<std::size_t>(31 * kNumIds + kNumIds - 1)] = 0;
      EXPECT(any_repeats(repeating, kNumIds, num_threads));
    }
  }
  return sod::test::finish();
}
