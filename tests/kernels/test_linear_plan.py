"""The plan of the walk: every row in a step once, in the order of the steps, in chunks of bounded size."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sod_kernels.linear.plan import default_chunk_size, make_plan
from sod_kernels.linear.rows import PlannedRows


def _plan(ids, chunk_size, keeps_steps_whole=True, num_steps=None, spare_rows=0):
    ids = torch.tensor(ids, dtype=torch.int64)
    num_steps = int(ids.max()) + 1 if num_steps is None else num_steps
    return make_plan(
        ids, num_steps, chunk_size=chunk_size, keeps_steps_whole=keeps_steps_whole, spare_rows=spare_rows
    )


def _borders(plan):
    return [(chunk.begin, chunk.end, chunk.num_open) for chunk in plan.chunks]


def test_rows_in_order_need_no_index():
    plan = _plan([-1, -1, 0, 0, 2, 2, 2, -1], 8)
    assert (plan.rows, plan.offset, plan.num_rows) == (None, 2, 5)
    assert plan.ranks.tolist() == [0, 0, 1, 1, 1]
    assert plan.steps.tolist() == [0, 2]
    assert plan.tokens.tolist() == [2, 0, 3]


def test_shuffled_and_scattered_rows_are_listed_by_step():
    plan = _plan([3, -1, 1, 3, 1, 0], 8)
    assert plan.rows.tolist() == [5, 2, 4, 0, 3]
    assert plan.ranks.tolist() == [0, 1, 1, 2, 2]
    assert plan.steps.tolist() == [0, 1, 3]


def test_border_moves_back_to_the_end_of_a_step_in_the_second_half():
    ids = [0] * 5 + [1] * 9 + [2] * 2
    assert _borders(_plan(ids, 8)) == [(0, 5, 0), (5, 13, 8), (13, 16, 0)]
    assert _borders(_plan(ids, 8, keeps_steps_whole=False)) == [(0, 8, 3), (8, 16, 0)]


def test_border_stays_where_the_step_ends_in_the_first_half():
    assert _borders(_plan([0] * 3 + [1] * 13, 8)) == [(0, 8, 5), (8, 16, 0)]


def test_chunk_outgrows_its_size_to_reach_the_end_of_a_step():
    ids = [0] * 3 + [1] * 9 + [2] * 4
    assert _borders(_plan(ids, 8, spare_rows=3)) == [(0, 8, 5), (8, 16, 0)]
    assert _borders(_plan(ids, 8, spare_rows=4)) == [(0, 12, 0), (12, 16, 0)]
    assert _borders(_plan(ids, 8, keeps_steps_whole=False, spare_rows=4)) == [(0, 8, 5), (8, 16, 0)]


def test_no_chunk_outgrows_its_size_where_another_step_is_cut_all_the_same():
    ids = [0] * 3 + [1] * 9 + [2] * 40
    assert _borders(_plan(ids, 8, spare_rows=4)) == _borders(_plan(ids, 8))
    assert any(num_open for _, _, num_open in _borders(_plan(ids, 8)))


def test_chunks_are_of_one_size():
    chunks = _plan(list(range(18)), 16, keeps_steps_whole=False).chunks
    assert [chunk.num_rows for chunk in chunks] == [9, 9]


def test_a_step_over_many_chunks_stays_open():
    plan = _plan([0] + [1] * 10 + [2], 3)
    assert [chunk.num_open for chunk in plan.chunks] == [2, 3, 3, 0]
    assert [chunk.complete_ranks for chunk in plan.chunks] == [1, 1, 1, 3]
    assert [(chunk.first_rank, chunk.stop_rank) for chunk in plan.chunks] == [(0, 2), (1, 2), (1, 2), (1, 3)]


def test_no_row_no_chunk():
    assert _plan([-1, -1], 4, num_steps=3).chunks == ()
    assert _plan([], 4, num_steps=0).num_rows == 0


@settings(deadline=None, max_examples=200)
@given(
    ids=st.lists(st.integers(-1, 6), min_size=1, max_size=60),
    chunk_size=st.integers(1, 70),
    keeps_steps_whole=st.booleans(),
    spare_rows=st.integers(0, 20),
)
def test_what_every_plan_promises(ids, chunk_size, keeps_steps_whole, spare_rows):
    plan = _plan(ids, chunk_size, keeps_steps_whole, num_steps=7, spare_rows=spare_rows)
    most_rows = chunk_size + (spare_rows if keeps_steps_whole else 0)
    steps = torch.tensor(ids)
    rows = PlannedRows(plan, len(ids), torch.device("cpu"))
    walked = rows.pick(torch.arange(len(ids)))
    assert sorted(walked.tolist()) == torch.nonzero(steps >= 0).flatten().tolist()
    assert steps[walked].tolist() == plan.steps[plan.ranks].tolist() == sorted(steps[walked].tolist())
    assert torch.equal(rows.put(rows.pick(steps + 1)), torch.where(steps >= 0, steps + 1, 0))
    complete, end = 0, 0
    for chunk in plan.chunks:
        assert (chunk.begin, 1 <= chunk.num_rows <= most_rows) == (end, True)
        ranks = plan.ranks[chunk.begin : chunk.end].tolist()
        later = set(plan.ranks[chunk.end :].tolist())
        assert (chunk.first_rank, chunk.stop_rank) == (ranks[0], ranks[-1] + 1)
        assert chunk.num_open == sum(rank in later for rank in ranks)
        assert set(range(complete, chunk.complete_ranks)).isdisjoint(later)
        complete, end = chunk.complete_ranks, chunk.end
    assert (complete, end) == (len(plan.steps), plan.num_rows)


def test_default_size_keeps_the_buffers_small():
    assert default_chunk_size(151_936, 2, 4, "cpu") == 256
    assert 256 * 151_936 * 2 * 4 <= 300 << 20
    assert default_chunk_size(151_936, 3, 4, "cuda") == 880
    assert 880 * 151_936 * 3 * 4 <= 1.5 * (1 << 30)
    assert default_chunk_size(10_000_000, 4, 8, "cpu") == 16
