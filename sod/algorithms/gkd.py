"""GKD: distillation on what the student writes and on what an expert wrote."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of
from sod.config_algorithms import GKDSection


def gkd(section: GKDSection) -> StepObjective:
    """Make GKD: the mean of JSD_beta(teacher, student) over the tokens of a round.

    Args:
        section: Its settings; `on_policy_share` is the paper's lambda, `beta` its beta.

    Returns:
        The algorithm; `sod.loop.minibatches.is_own_round` says which rounds are whose.

    Source: arXiv 2306.13649, algorithm 1 and equation (1).
    """
    return StepObjective(name="gkd", divergence=divergence_of(section))
