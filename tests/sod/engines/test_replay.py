"""A stored run is played back to the token, or the first difference is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sod.engines.base import SamplingParams
from sod.engines.replay import ReplayEngine
from sod.errors import RolloutError
from sod.types import StopReason, Trajectory, Turn

PARAMS = SamplingParams(max_turn_tokens=4, stop_ids=(9,))


def turn(context, sampled):
    return Turn(
        context_ids=context,
        sampled_ids=sampled,
        sampled_log_probs=tuple(-0.5 for _ in sampled),
        stop_reason=StopReason.LENGTH,
        policy_version=7,
    )


STORED = [
    Trajectory(task_id="a", turns=(turn((1, 2), (5, 9)), turn((7, 8), (6, 9)))),
    Trajectory(task_id="a", turns=(turn((1, 2), (6, 9)),)),
    Trajectory(task_id="b", turns=(turn((3,), (5,)), turn((4, 4), (8,))), segments=(0, 1)),
]


def play(engine, prompts, answers):
    heard = []

    def respond(ended):
        heard.append([(row, generation.sampled_ids) for row, generation in ended])
        return [answers[row].pop(0) if answers[row] else None for row, _ in ended]

    engine.rollout(prompts, respond, PARAMS, seed=0)
    return heard


def test_the_same_turns_come_back_and_segments_are_rows_of_their_own():
    engine = ReplayEngine(STORED)
    heard = play(engine, [(1, 2), (1, 2), (3,)], {0: [(7, 8)], 1: [], 2: []})
    assert heard == [[(0, (5, 9)), (1, (6, 9)), (2, (5,))], [(0, (6, 9))]]
    assert engine.policy_version == 7
    assert play(engine, [(4, 4)], {0: []}) == [[(0, (8,))]]
    engine.update_weights({}, 8)
    assert (engine.policy_version, engine.score((1, 2))) == (8, None)
    engine.close()


def test_log_probs_and_stop_reasons_are_kept():
    seen = []
    ReplayEngine([replace(STORED[1])]).rollout(
        [(1, 2)], lambda ended: seen.extend(ended) or [None], PARAMS, seed=0
    )
    ((_, generation),) = seen
    assert generation.log_probs == (-0.5, -0.5)
    assert generation.stop_reason is StopReason.LENGTH


def test_differences_are_named():
    with pytest.raises(RolloutError, match=r"begins with the prompt of row 0 \(2 tokens\), 4 are left"):
        play(ReplayEngine(STORED), [(1, 3)], {0: []})
    wanted = (
        r"trajectory 0 \(task 'a'\), turn 1: the observation .* from token 1 on \(now \[5\], stored \[8\]\)"
    )
    with pytest.raises(RolloutError, match=wanted):
        play(ReplayEngine(STORED), [(1, 2)], {0: [(7, 5)]})
    with pytest.raises(RolloutError, match=r"from token 2 on \(now \[1\], stored \[\]\)"):
        play(ReplayEngine(STORED), [(1, 2)], {0: [(7, 8, 1)]})
    with pytest.raises(RolloutError, match=r"turn 0: the row is over after it, but .* it was not its last"):
        play(ReplayEngine(STORED), [(1, 2)], {0: []})
    with pytest.raises(RolloutError, match=r"turn 1: the row goes on after it, but .* it was its last"):
        play(ReplayEngine(STORED), [(1, 2)], {0: [(7, 8), (1,)]})
