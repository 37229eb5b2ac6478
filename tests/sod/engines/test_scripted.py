"""Scripts in the place of a model."""

from __future__ import annotations

import pytest

from sod.engines.base import SamplingParams
from sod.engines.scripted import ScriptedEngine
from sod.errors import RolloutError
from sod.types import StopReason

PARAMS = SamplingParams(max_turn_tokens=3, stop_ids=(9,))


def test_rows_play_their_scripts_turn_by_turn():
    engine = ScriptedEngine([[[1, 9], [2, 9]], [[3, 4, 5, 9]], [[6, 9]]])
    seen = []

    def respond(ended):
        seen.append([(row, generation.sampled_ids, generation.stop_reason) for row, generation in ended])
        return [(7,) if generation.sampled_ids == (1, 9) else None for _, generation in ended]

    engine.rollout([(0,), (0,)], respond, PARAMS, seed=0)
    engine.rollout([(0,)], respond, PARAMS, seed=0)
    assert seen == [
        [(0, (1, 9), StopReason.STOP_TOKEN), (1, (3, 4, 5), StopReason.LENGTH)],
        [(0, (2, 9), StopReason.STOP_TOKEN)],
        [(0, (6, 9), StopReason.STOP_TOKEN)],
    ]
    engine.update_weights({}, 4)
    assert engine.policy_version == 4


def test_missing_scripts_and_turns_are_named():
    engine = ScriptedEngine([[[1, 9]]])
    with pytest.raises(RolloutError, match="2 rows asked for, 1 scripts are left of 1"):
        engine.rollout([(0,), (0,)], lambda ended: [None], PARAMS, seed=0)
    with pytest.raises(RolloutError, match="script of row 0 has 1 turns, but its trajectory goes on"):
        engine.rollout([(0,)], lambda ended: [(1,)], PARAMS, seed=0)
