"""Estimators of an evaluation with several attempts per task."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean, pstdev

NUM_RESAMPLES = 1000


def pass_at_k(num_attempts: int, num_solved: int, k: int) -> float:
    """Estimate without bias how likely at least one of k attempts at a task succeeds.

    1 - C(n - c, k) / C(n, k): the share of the subsets of k attempts that hold a success.

    Args:
        num_attempts: n, attempts made.
        num_solved: c, of which succeeded.
        k: Attempts allowed, from 1 to n.

    Returns:
        In [0, 1].

    Raises:
        ValueError: If the numbers do not fit.

    Source: arXiv 2107.03374, equation (1).
    """
    if not 1 <= k <= num_attempts or not 0 <= num_solved <= num_attempts:
        raise ValueError(
            f"pass_at_k: k={k}, num_solved={num_solved}, num_attempts={num_attempts}; wanted 1 <= k <= "
            "num_attempts and 0 <= num_solved <= num_attempts."
        )
    return 1.0 - math.comb(num_attempts - num_solved, k) / math.comb(num_attempts, k)


def bootstrap_error(values: Sequence[float], *, seed: int = 0) -> float:
    """Estimate the standard error of a mean by drawing the values again, with replacement.

    Args:
        values: One per task.
        seed: Of the draws; the same values and seed give the same error.

    Returns:
        Standard deviation of the means of 1000 resamples; NaN for fewer than two values.
    """
    if len(values) < 2:
        return math.nan
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    return pstdev(fmean(generator.choices(values, k=len(values))) for _ in range(NUM_RESAMPLES))
