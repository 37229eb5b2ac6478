"""SOD: on-policy distillation in which a step that drifts from the teacher counts less."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of, surrogate_of
from sod.algorithms.step_weights import DecayAfterError, FromStatistics, StepWeight
from sod.config_algorithms import SODSection
from sod.schedules import constant
from sod_kernels import SodWeighting

AFTER_ERROR = {"decay_after_error": 0.9, "mask_after_error": 0.0}
"""Decay per step after a trajectory's first error, of the paper's two heuristic ablations."""


def sod(section: SODSection) -> StepObjective:
    """Make SOD: w_1 = 1, w_k = min((d_1 + epsilon) / (d_k + epsilon), 1 + delta), plus the GRPO term.

    Args:
        section: Its settings; the defaults are the paper's: sampled form, reward coefficient 1. `weight`
            takes the heuristics of its ablation instead, `delta = inf` the one without a clip.

    Returns:
        The algorithm.

    Source: arXiv 2605.07725, equations (6), (7), (9) and (10).
    """
    return StepObjective(
        name="sod",
        divergence=divergence_of(section, per_step=section.step_divergence),
        weight=_weight(section),
        reward=constant(section.reward_coefficient),
        surrogate=surrogate_of(section),
    )


def _weight(section: SODSection) -> StepWeight:
    if section.weight == "divergence":
        return FromStatistics(weighting=SodWeighting(delta=section.delta, epsilon=section.epsilon))
    return DecayAfterError(decay=AFTER_ERROR[section.weight])
