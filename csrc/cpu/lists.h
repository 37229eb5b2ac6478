// Lists of ids and log-probabilities, as a teacher that gave its top-k sends them.
#pragma once

#include <cstdint>

#include "sod/step_kl.h"

namespace sod::cpu {

struct GivenLists {
  std::int64_t num_lists;
  std::int64_t num_ids;
  std::int64_t vocab_size;
  const std::int64_t* step_ids;  // (num_lists); a list of a token in no step is not read
  const std::int64_t* ids;       // (num_lists, num_ids); a negative one is absent
  const double* log_probs;       // likewise; one of these two is null
  const float* float_log_probs;
  double unit;       // less mass outside a list counts as this much
  double most_mass;  // that a list may add up to
};

// Each id once, with the largest of its log-probabilities; what is absent has id -1 and -inf.
struct ReadLists {
  std::int64_t* ids;  // (num_lists, num_ids), like the next
  double* log_probs;
  double* tail;  // (num_lists), log of the mass outside the list
};

// False where a list holds an id beyond the vocabulary, NaN or too much mass; then not everything is written.
bool read_lists(const GivenLists& given, const ReadLists& lists, int num_threads);

enum class Tail : int { kBucket = 0, kRenormalise = 1, kDrop = 2 };

struct ListProblem {
  std::int64_t num_tokens;
  std::int64_t num_ids;
  std::int64_t vocab_size;
  const std::int64_t* step_ids;  // (num_tokens)
  ReadLists teacher;
  const float* log_probs;  // (num_tokens, stride), the student's; the first num_ids are those of the list
  std::int64_t stride;
  const std::int64_t* sampled_ids;  // (num_tokens); null without
  Tail tail;
  Divergence divergence;
  double beta;
  double min_log_prob;  // -inf for no floor
  double unit;          // a smaller mass of the student outside a list counts as this much
};

// The divergence over the categories of each list, its derivatives in the student's log-probabilities of the
// ids (num_tokens, num_ids), the sampled ids' log-probabilities of the teacher, and the sums per step. The
// student's entropy and sampled log-probabilities in `outputs` are read.
void compare_lists(const ListProblem& problem, const ForwardOutputs& outputs, double* slopes,
                   int num_threads);

}  // namespace sod::cpu
