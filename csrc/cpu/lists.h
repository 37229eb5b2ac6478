// Lists of ids, as a teacher that gave its top-k sends them.
#pragma once

#include <cstdint>

namespace sod::cpu {

struct IdLists {
  const std::int64_t* ids;  // (num_lists, num_ids); a negative one is absent
  std::int64_t num_lists;
  std::int64_t num_ids;
};

// Whether any list holds an id twice. Allocates up to eight numbers per id of a list for each thread.
bool any_repeats(const IdLists& lists, int num_threads);

}  // namespace sod::cpu
