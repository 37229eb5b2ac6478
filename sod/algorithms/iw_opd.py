"""IW-OPD: on-policy distillation in which tokens behind an unreliable prefix count less."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of, surrogate_of
from sod.algorithms.token_weights import PrefixReliability
from sod.config_algorithms import IWOPDSection
from sod.schedules import constant


def iw_opd(section: IWOPDSection) -> StepObjective:
    """Make IW-OPD: w_t = 1 + gamma (1 - share of the trajectory's divergence that lies before t).

    Source: arXiv 2606.22600.
    """
    return StepObjective(
        name="iw_opd",
        divergence=divergence_of(section),
        token_weight=PrefixReliability(gamma=section.gamma),
        reward=constant(section.reward_coefficient),
        surrogate=surrogate_of(section),
    )
