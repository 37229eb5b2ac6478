// The sweep that keeps a row on the chip of a cluster of blocks: small rows and blocks of little memory, so
// that every size of cluster comes up.
#include <cstdint>
#include <vector>

#include "check.h"
#include "cuda/cluster_plan.h"
#include "cuda/cluster_team.cuh"
#include "library.h"
#include "sod/segments.h"
#include "step_kl_batch.h"

namespace {

using sod::Divergence;
using sod::DType;
using sod::test::Batch;
using sod::test::Case;
using sod::test::Content;
using sod::test::expect_same;
using sod::test::make_batch;
using sod::test::Results;
using sod::test::Upstream;

constexpr double kNone = -INFINITY;

// Upstream gradients that are 0 may be left out.
void sweep_in_clusters(int schedule, const sod::Problem& problem, const sod::BackwardInputs& inputs,
                       const sod::ForwardOutputs& outputs, const sod::Gradient& gradient) {
  sod::BackwardInputs given = inputs;
  if (inputs.grad_student_log_probs[0] == 0) given.grad_student_log_probs = nullptr;
  if (inputs.grad_student_entropy[0] == 0) given.grad_student_entropy = nullptr;
  sod::test::call(sod::cuda::forward_backward, schedule, problem, given, outputs, gradient);
}

// Blocks of a device with so much shared memory. Returns the size of the last launch's clusters, 0 without.
template <class Launch>
int cluster_of(std::int64_t block_bytes, Launch launch) {
  sod::cuda_on_cpu::device = {block_bytes, {}, 0};
  launch();
  const std::vector<int>& clusters = sod::cuda_on_cpu::device.clusters;
  return clusters.empty() ? 0 : clusters.back();
}

std::int64_t packs_of(const Batch& batch) {
  const std::int64_t width = 16 / static_cast<std::int64_t>(sod::test::size_of(batch.layout.dtype));
  return sod::cuda::divide_up(batch.layout.vocab, width);
}

std::int64_t num_rows(const Upstream& upstream) {
  return upstream.reference_kl != 0 ? 3 : 2;
}

// As much memory as a block of such a cluster needs, and not more.
std::int64_t bytes_for(const Batch& batch, const Upstream& upstream, int size) {
  return num_rows(upstream) * sod::cuda::divide_up(packs_of(batch), size) * 16;
}

void check(const Batch& batch, const Case& c, const Upstream& upstream, int size) {
  const std::size_t num_tokens = upstream.reference_kl != 0 ? 15 : 12;
  Results results;
  const auto sweep = [&](int schedule, bool is_in_place) {
    EXPECT(size == cluster_of(bytes_for(batch, upstream, size), [&] {
             results = run(batch, c, upstream, sweep_in_clusters, schedule, is_in_place);
           }));
  };
  sweep(0, false);
  const Results first = results;
  // The whole packs of the two active rows, once.
  const std::int64_t bytes =
      batch.layout.vocab * static_cast<std::int64_t>(sod::test::size_of(batch.layout.dtype));
  EXPECT(sod::cuda_on_cpu::device.copied_bytes ==
         static_cast<std::size_t>(2 * num_rows(upstream) * (bytes / 16 * 16)));
  for (const int row : {0, 2}) check_row(batch, c, upstream, first, row);
  for (std::size_t column = 0; 3 * column < num_tokens; ++column)
    EXPECT(first.tokens[3 * column + 1] == 0.0f);
  const auto& [dtype, vocab, stride] = batch.layout;
  const bool is_zero =
      upstream.token_kl == 0 && upstream.reference_kl == 0 && upstream.log_prob == 0 && upstream.entropy == 0;
  for (std::int64_t i = 0; i < 3 * stride; ++i) {
    const bool must_be_zero = is_zero || i / stride == 1 || i % stride >= vocab;
    if (must_be_zero) EXPECT(first.gradient[static_cast<std::size_t>(i)] == 0.0f);
  }
  EXPECT(first.sums[0] == 1.0 && first.sums[sod::kStepColumns] == 1.0);
  EXPECT(first.sums[1] == static_cast<double>(first.tokens[2]));
  // The other order of threads and blocks, and over the logits.
  sweep(1, true);
  expect_same(first, results, num_tokens);
  if (size > 1) return;
  expect_same(first, run(batch, c, upstream, sod::test::sweep_twice, 0, false), num_tokens);
}

void test_every_size() {
  const Case cases[] = {{Divergence::kReverseKL, 1.0, kNone}, {Divergence::kReverseKL, 0.7, -6.0},
                        {Divergence::kForwardKL, 1.0, kNone}, {Divergence::kForwardKL, 0.7, -6.0},
                        {Divergence::kJSD, 1.3, kNone},       {Divergence::kJSD, 1.0, -6.0}};
  // What the step weights give, then all; then no weight at all.
  const Upstream upstreams[] = {
      {0.7f, 0, 0, 0}, {0.7f, 0, 0, 0.6f}, {0.7f, -0.3f, 0.4f, 0}, {0.7f, -0.3f, 0.4f, 0.6f}, {0, 0, 0, 0}};
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  const Content contents[] = {Content::kPlain, Content::kFarFromZero, Content::kWithHoles};
  // Every case with every size and every dtype; the others take turns.
  std::size_t turn = 0;
  for (const Case& c : cases) {
    for (const int size : {1, 2, 4, 8}) {
      for (int i = 0; i < 3; ++i, ++turn) {
        const Upstream& upstream = upstreams[turn % 5];
        const DType dtype = dtypes[turn % 3];
        // So far from 0 the kit's logits come out alike in 16 bits.
        const Content content = contents[(turn / 3 + turn) % 3];
        const bool is_too_far = content == Content::kFarFromZero && dtype != DType::kFloat32;
        const std::int64_t vocab = turn % 2 == 0 ? 2501 : 301;
        const Batch batch = make_batch({dtype, vocab, vocab + 11}, 1.0, is_too_far ? contents[0] : content);
        check(batch, c, upstream, size);
      }
    }
  }
}

// More than one piece to a block, and several turns of its threads to a piece.
void test_many_pieces() {
  const Upstream upstream{0.7f, -0.3f, 0.4f, 0.6f};
  for (const std::int64_t vocab : {4099, 9003}) {
    const Batch batch = make_batch({DType::kFloat32, vocab, vocab + 13}, 1.0, Content::kPlain);
    for (const int size : {1, 2}) check(batch, {Divergence::kJSD, 1.0, -6.0}, upstream, size);
  }
}

// A vocabulary of today on a card of today, which lets a block have 227 KiB.
void test_a_real_vocabulary() {
  const Batch batch = make_batch({DType::kBFloat16, 151936, 151936}, 1.0, Content::kPlain);
  const Upstream upstream{0.7f, 0, 0, 0};
  Results results;
  EXPECT(4 == cluster_of(226 * 1024, [&] {
           results = run(batch, {Divergence::kJSD, 1.0, kNone}, upstream, sweep_in_clusters, 0, true);
         }));
  check_row(batch, {Divergence::kJSD, 1.0, kNone}, upstream, results, 2);
}

// Nine packs leave three of eight blocks without any.
void test_rows_shorter_than_a_cluster() {
  const Upstream upstream{0.7f, -0.3f, 0.4f, 0};
  for (const Divergence divergence : {Divergence::kReverseKL, Divergence::kForwardKL, Divergence::kJSD}) {
    const Case c{divergence, 1.0, kNone};
    check(make_batch({DType::kFloat32, 35, 36}, 1.0, Content::kPlain), c, upstream, 8);
    check(make_batch({DType::kFloat32, 1, 4}, 1.0, Content::kPlain), c, upstream, 1);
  }
}

// What a block brings has another sum in every other order. Three turns, so that memory is used again.
void reduces_over_its_cluster(const double* numbers, double* out) {
  using namespace sod::cuda;
  ClusterTeam<float> team({0, 0, 0}, shared_memory<ClusterMemory>());
  for (int turn = 0; turn < 3; ++turn) {
    const double own = threadIdx.x == 0 ? (turn + 1) * numbers[cluster_rank()] : 0.0;
    float max[] = {static_cast<float>(own)};
    double sums[] = {own, -own};
    team.reduce_max(max);
    team.reduce_sum(sums);
    if (threadIdx.x != kThreads - 1) continue;
    double* const results = out + blockIdx.x * 9 + turn * 3;
    results[0] = static_cast<double>(max[0]);
    results[1] = sums[0];
    results[2] = sums[1];
  }
  cluster_arrive();
  cluster_wait();
}

void test_every_block_gets_the_same_bits() {
  const std::vector<double> numbers{1e16, 1, -1e16, 1, 3, 1e16, -1e16, 0.1};
  for (const int schedule : {0, 1}) {
    std::vector<double> out(8 * 9);
    sod::cuda_on_cpu::set_order(static_cast<sod::cuda_on_cpu::Order>(schedule));
    sod::cuda::launch_clusters<reduces_over_its_cluster>(1, 8, 0, nullptr, numbers.data(), out.data());
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double scale = static_cast<double>(i % 9 / 3 + 1);
      double sum = 0;
      for (const double number : numbers) sum += scale * number;
      const double max = static_cast<double>(static_cast<float>(scale * 1e16));
      EXPECT(out[i] == (i % 3 == 0 ? max : i % 3 == 1 ? sum : -sum));
    }
  }
}

void test_where_no_cluster_does_it() {
  const Case c{Divergence::kReverseKL, 1.0, -6.0};
  const Upstream upstream{0.7f, -0.3f, 0.4f, 0.6f};
  const Batch aligned = make_batch({DType::kBFloat16, 45, 48}, 1.0, Content::kPlain);
  const Batch odd = make_batch({DType::kBFloat16, 45, 45}, 1.0, Content::kPlain);
  const auto size_with = [&](const Batch& batch, std::int64_t block_bytes) {
    Results once;
    const int size =
        cluster_of(block_bytes, [&] { once = run(batch, c, upstream, sweep_in_clusters, 0, false); });
    expect_same(run(batch, c, upstream, sod::test::sweep_twice, 0, false), once, 15);
    return size;
  };
  EXPECT(size_with(aligned, 1 << 16) == 1);
  EXPECT(size_with(odd, 1 << 16) == 0);
  // A card without clusters, and one whose blocks are too small for six packs in eight of them.
  EXPECT(size_with(aligned, 0) == 0);
  EXPECT(size_with(aligned, 47) == 0);
}

void test_the_plan() {
  using sod::cuda::choose_cluster_size;
  // A pair and a triple of 151,936 entries in bfloat16 and in float32, within 226 KiB.
  constexpr std::int64_t half = 151936 / 8, full = 151936 / 4, block = 226 * 1024;
  EXPECT(choose_cluster_size(half, 2, block) == 4);
  EXPECT(choose_cluster_size(half, 3, block) == 4);
  EXPECT(choose_cluster_size(full, 2, block) == 8);
  EXPECT(choose_cluster_size(full, 3, block) == 8);
  EXPECT(choose_cluster_size(full, 3, 200 * 1024) == 0);
  EXPECT(choose_cluster_size(1, 2, 32) == 1);
  EXPECT(choose_cluster_size(9, 2, 63) == 0);
  EXPECT(choose_cluster_size(8, 2, 32) == 8);
  EXPECT(choose_cluster_size(1, 2, 0) == 0);
  // The parts of a row lie side by side and are the row.
  for (const std::int64_t row : {1, 8, 37, 1000, 1003}) {
    for (const int size : {1, 2, 4, 8}) {
      std::int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const sod::cuda::Part part = sod::cuda::part_of_block(row, 8, size, rank);
        EXPECT(part.start == next && part.size <= part.capacity && part.capacity % 8 == 0);
        EXPECT(part.size == 0 || part.start % 8 == 0);
        for (std::int64_t entry = 0; entry < row; ++entry) {
          const std::int64_t at = sod::cuda::position_in(part, entry);
          const bool is_inside = entry >= next && entry < next + part.size;
          EXPECT(is_inside ? at == entry - next : at < 0);
        }
        next = part.start + part.size;
      }
      EXPECT(next == row);
    }
  }
}

}  // namespace

int main() {
  test_the_plan();
  test_every_block_gets_the_same_bits();
  test_every_size();
  test_many_pieces();
  test_a_real_vocabulary();
  test_rows_shorter_than_a_cluster();
  test_where_no_cluster_does_it();
  return sod::test::finish();
}
