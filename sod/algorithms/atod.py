"""ATOD: distillation that fades into reinforcement learning, its turns weighed."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of, surrogate_of
from sod.algorithms.step_weights import FromStatistics
from sod.config_algorithms import ATODSection
from sod.schedules import LinearSchedule
from sod_kernels import TurnWeighting


def atod(section: ATODSection) -> StepObjective:
    """Make ATOD: kappa(s) falls, rho(s) rises, and w_k = 1 - (1 - d~_k)(1 - h~_k) on the distillation term.

    Args:
        section: Its settings; the defaults are the paper's.

    Returns:
        The algorithm.

    Source: arXiv 2606.27814, equations (8) to (16).
    """
    return StepObjective(
        name="atod",
        divergence=divergence_of(section),
        weight=FromStatistics(
            weighting=TurnWeighting(
                min_turns=section.min_turns,
                min_divergence=section.min_divergence,
                mean_preserving=section.mean_preserving,
            )
        ),
        distillation=LinearSchedule(
            start=section.distillation_start, end=section.distillation_end, length=section.anneal_rounds
        ),
        reward=LinearSchedule(
            start=section.reward_start, end=section.reward_end, length=section.anneal_rounds
        ),
        surrogate=surrogate_of(section),
    )
