"""Contestants are timed in turns inside one process, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.device import Device

LEAST_ROUNDS, MOST_ROUNDS = 3, 30


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one contestant over all rounds."""

    median_s: float
    p20_s: float
    p80_s: float
    rounds: int


def time_in_turns(
    contestants: Mapping[str, Callable[[], object]], device: Device, *, budget_s: float
) -> dict[str, Timing]:
    """Time every contestant once per round, in turns.

    Args:
        contestants: Name and call; each has run at full size before.
        device: Whose clock is read.
        budget_s: Seconds to spend on all rounds; from 3 to 30 rounds are made whatever it says.

    Returns:
        Median and spread per contestant.
    """
    samples = {name: [device.seconds(run)] for name, run in contestants.items()}
    round_s = sum(values[0] for values in samples.values())
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(budget_s / max(round_s, 1e-9))))
    for _ in range(rounds - 1):
        for name, run in contestants.items():
            samples[name].append(device.seconds(run))
    return {name: summarise(values) for name, values in samples.items()}


def summarise(values: list[float]) -> Timing:
    """Take the median and the 20th and 80th percentile of at least one sample."""
    if len(values) < 2:
        return Timing(median_s=values[0], p20_s=values[0], p80_s=values[0], rounds=1)
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Timing(median_s=statistics.median(values), p20_s=fifths[0], p80_s=fifths[3], rounds=len(values))
