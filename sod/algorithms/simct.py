"""SimCT: on-policy distillation from a teacher with another tokenizer."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import surrogate_of
from sod.algorithms.step_weights import FromStatistics, StepWeight
from sod.algorithms.unit_divergence import UnitDivergence
from sod.config_simct import SimCTSection
from sod.schedules import constant
from sod_kernels import SodWeighting, TurnWeighting


def simct(section: SimCTSection) -> StepObjective:
    """Make SimCT: the divergence over shared tokens and spans, all steps alike or weighted as in SOD or ATOD.

    Args:
        section: Its settings; the defaults are the paper's.

    Returns:
        The algorithm.

    Source: arXiv 2605.07711, equations (6) to (9); the step weights and the reward term on top are ours.
    """
    return StepObjective(
        name="simct",
        divergence=UnitDivergence(
            loss=section.loss,
            score=section.score,
            kind=section.divergence,
            beta=section.beta,
            temperature=section.temperature or 1.0,
            unit_filter=None if section.unit_filter == "all" else section.unit_filter,
            topk=section.topk,
            mask_first_token=section.mask_first_token,
            min_teacher_mass=section.min_teacher_mass,
            per_step=section.step_divergence,
        ),
        weight=_weight(section),
        reward=constant(section.reward_coefficient),
        surrogate=surrogate_of(section),
    )


def _weight(section: SimCTSection) -> StepWeight | None:
    if section.weight == "sod":
        return FromStatistics(weighting=SodWeighting(delta=section.delta, epsilon=section.epsilon))
    if section.weight == "atod":
        weighting = TurnWeighting(min_turns=section.min_turns, min_divergence=section.min_divergence)
        return FromStatistics(weighting=weighting)
    return None
