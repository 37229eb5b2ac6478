"""Gated OPD: the reward, and distillation that grows where a trajectory did worse than its group."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of, surrogate_of
from sod.algorithms.step_weights import AdvantageGate
from sod.config_algorithms import GatedOPDSection
from sod.schedules import constant


def gated_opd(section: GatedOPDSection) -> StepObjective:
    """Make gated OPD: A_i + (low + (high - low) sigmoid(-steepness A_i)) (log q - log p_old).

    Source: the code that arXiv 2605.07725 released, its path without step weights.
    """
    return StepObjective(
        name="gated_opd",
        divergence=divergence_of(section),
        weight=AdvantageGate(low=section.low, high=section.high, steepness=section.steepness),
        reward=constant(section.reward_coefficient),
        surrogate=surrogate_of(section),
    )
