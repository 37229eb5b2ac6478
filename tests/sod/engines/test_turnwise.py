"""The book of rows that engines of whole turns share: limits, seeds, and answers that are not as asked."""

from __future__ import annotations

import pytest

from sod.engines.base import SamplingParams
from sod.engines.turnwise import TurnBook
from sod.errors import RolloutError
from sod.types import StopReason

PARAMS = SamplingParams(max_turn_tokens=4, stop_ids=(9,), max_total_tokens=12)


def book(respond=lambda ended: [None] * len(ended), prompts=((1, 2), (3,)), **changes):
    options = {"seed": 5, "num_positions": 64, "engine": "Some", "vocab_size": 20, **changes}
    return TurnBook(prompts, respond, options.pop("params", PARAMS), **options)


def test_turns_travel_in_row_order_and_contexts_grow():
    seen = []

    def respond(ended):
        seen.append([row for row, _ in ended])
        return [(7, 7, 7) if row == 0 else None for row, _ in ended]

    made = book(respond)
    first, second = made.first_requests()
    assert (first.ids, first.max_tokens, second.ids, second.max_tokens) == ((1, 2), 4, (3,), 4)
    assert len({first.seed, second.seed}) == 2
    stopped = made.generation(first, [5, 9], [-0.5, -0.1])
    full = made.generation(second, [5, 6, 7, 8], [-0.5] * 4)
    assert (stopped.stop_reason, full.stop_reason) == (StopReason.STOP_TOKEN, StopReason.LENGTH)
    (following,) = made.answer([(1, full), (0, stopped)])
    assert seen == [[0, 1]]
    assert (following.row, following.turn, following.ids) == (0, 1, (1, 2, 5, 9, 7, 7, 7))
    assert following.seed != first.seed
    # 12 tokens in all leave room for 5, and a turn has at most 4; then for 1.
    assert following.max_tokens == 4
    (last,) = made.answer([(0, made.generation(following, [9], [-0.1]))])
    assert last.max_tokens == 1
    assert [request.seed for request in book().first_requests()] == [first.seed, second.seed]


def test_an_observation_without_room_for_an_answer_is_refused():
    made = book(lambda _: [tuple(range(9))], prompts=((1, 2),))
    (request,) = made.first_requests()
    with pytest.raises(
        RolloutError, match=r"Some.rollout: the observation of row 0 has 9 tokens .* to 12; 12 are"
    ):
        made.answer([(0, made.generation(request, [9], [0.0]))])


@pytest.mark.parametrize(
    ("ids", "log_probs", "message"),
    [
        ([], [], "got 0 ids and 0 log-probs"),
        ([1, 2, 3, 4, 5], [0.0] * 5, "got 5 ids"),
        ([1, 9], [-1.0], "got 2 ids and 1 log-probs"),
        ([1, 9], [-1.0, float("nan")], "a log-probability is not finite"),
        ([9, 1], [-1.0, -1.0], r"stop tokens at \[0\]; wanted one at the end only"),
        ([1, 2], [-1.0, -1.0], "2 of 4 tokens"),
        ([20, 9], [-1.0, -1.0], "sampled id 20, a padding column of the model; tokens end at 19"),
    ],
)
def test_answers_that_are_not_as_asked(ids, log_probs, message):
    made = book()
    with pytest.raises(RolloutError, match=f"Some.rollout: row 0, turn 0.*{message}"):
        made.generation(made.first_requests()[0], ids, log_probs)


def test_prompts_and_limits_are_checked_at_once():
    with pytest.raises(ValueError, match="max_total_tokens is 12, but the engine holds 11 tokens"):
        book(num_positions=11)
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        book(prompts=((1,), ()))
    with pytest.raises(ValueError, match="prompt 0 has 12 tokens"):
        book(prompts=((1,) * 12,))


def test_a_cut_vocabulary_is_flagged():
    cut = SamplingParams(max_turn_tokens=4, stop_ids=(9,), top_p=0.9)
    for params, expected in ((cut, True), (PARAMS, False)):
        made = book(params=params)
        assert made.generation(made.first_requests()[0], [9], [0.0]).is_truncated is expected
    assert not SamplingParams(max_turn_tokens=4, stop_ids=(9,), top_p=0.9, temperature=0.0).is_truncated
