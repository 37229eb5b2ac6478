"""Estimators of an evaluation with several attempts per task."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, pstdev

NUM_RESAMPLES = 1000
_MOST_SUBSETS = 200


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


def majority_at_k(answers: Sequence[str | None], is_right: Sequence[bool], k: int, *, seed: int = 0) -> float:
    """Estimate how likely the most frequent answer of k attempts at a task is right.

    The mean over the subsets of k attempts, all of them or 200 drawn at random; attempts without an answer do
    not vote, and answers with equally many votes share the decision.

    Args:
        answers: Final answer of each attempt, equal where the attempts agree; None without one.
        is_right: Whether each attempt succeeds.
        k: Attempts that vote, from 1 to their number.
        seed: Of the draws.

    Returns:
        In [0, 1].

    Raises:
        ValueError: If the numbers do not fit.
    """
    if len(answers) != len(is_right) or not 1 <= k <= len(answers):
        raise ValueError(
            f"majority_at_k: k={k}, {len(answers)} answers, {len(is_right)} is_right; wanted as many of both "
            "and 1 <= k <= their number."
        )
    attempts = range(len(answers))
    if math.comb(len(answers), k) <= _MOST_SUBSETS:
        subsets = [list(subset) for subset in combinations(attempts, k)]
    else:
        generator = random.Random(seed)  # noqa: S311 - not for secrets
        subsets = [generator.sample(attempts, k) for _ in range(_MOST_SUBSETS)]
    return fmean(_majority(answers, is_right, subset) for subset in subsets)


def _majority(answers: Sequence[str | None], is_right: Sequence[bool], subset: Sequence[int]) -> float:
    votes = Counter(answers[index] for index in subset if answers[index] is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    # A grader may be of two minds about one text, so an answer is as right as its attempts.
    shares = [
        fmean(float(is_right[index]) for index in subset if answers[index] == winner) for winner in winners
    ]
    return fmean(shares)


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
