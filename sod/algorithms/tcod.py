"""TCOD: on-policy distillation whose turns come in from the front as training goes on."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of, surrogate_of
from sod.algorithms.step_weights import FirstTurns
from sod.config_algorithms import TCODSection
from sod.schedules import constant


def tcod(section: TCODSection) -> StepObjective:
    """Make TCOD, front to back: turn k is trained from round s on where k < 1 + floor(s / rounds_per_turn).

    Rollouts are not cut short: later turns are sampled and not trained.

    Source: arXiv 2604.24005.
    """
    return StepObjective(
        name="tcod",
        divergence=divergence_of(section),
        weight=FirstTurns(rounds_per_turn=section.rounds_per_turn),
        reward=constant(section.reward_coefficient),
        surrogate=surrogate_of(section),
    )
