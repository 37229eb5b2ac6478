"""Prompts and made-up observations, the same for the tests of every engine."""

from __future__ import annotations

import random

from sod.engines.base import SamplingParams

STOP = tuple(range(40, 60))
PROMPTS = [(300,), tuple(range(100, 117)), (7, 7, 9), tuple(range(200, 240)), (5, 6, 7, 8, 9)]


class Recorder:
    """Answers turns with made-up observations of its own lengths, and keeps each row's whole stream."""

    def __init__(self, prompts, observation_lengths, num_turns):
        self.streams = {row: list(prompt) for row, prompt in enumerate(prompts)}
        self.is_sampled = {row: [False] * len(prompt) for row, prompt in enumerate(prompts)}
        self.log_probs = {row: [0.0] * len(prompt) for row, prompt in enumerate(prompts)}
        self.generations = {row: [] for row in self.streams}
        self.calls = []
        self._lengths = observation_lengths
        self._num_turns = num_turns

    def __call__(self, ended):
        self.calls.append([row for row, _ in ended])
        return [self._answer(row, generation) for row, generation in ended]

    def _answer(self, row, generation):
        self.generations[row].append(generation)
        self._add(row, generation.sampled_ids, True, generation.log_probs)
        turn = len(self.generations[row])
        if turn == self._num_turns[row]:
            return None
        rng = random.Random(1000 * row + turn)
        ids = tuple(rng.randrange(512) for _ in range(self._lengths[row][turn - 1]))
        self._add(row, ids, False, [0.0] * len(ids))
        return ids

    def _add(self, row, ids, is_sampled, log_probs):
        self.streams[row] += ids
        self.is_sampled[row] += [is_sampled] * len(ids)
        self.log_probs[row] += log_probs


def make_recorder(prompts=PROMPTS):
    # Observations from nothing (two turns touch) to longer than any turn; rows end at different turns.
    lengths = [[0, 3, 1], [12, 0, 0], [1, 1, 1], [30, 5, 2], [0, 25, 9]]
    return Recorder(prompts, lengths, [4, 1, 3, 2, 4])


def params(**changes):
    return SamplingParams(**{"max_turn_tokens": 9, "stop_ids": STOP, **changes})
