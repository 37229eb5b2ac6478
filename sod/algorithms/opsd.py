"""OPSD: the student learns from itself, told the answer or a hint."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of, surrogate_of
from sod.config_algorithms import PrivilegedSection
from sod.schedules import constant


def opsd(section: PrivilegedSection) -> StepObjective:
    """Make OPSD: the mean divergence from a teacher that reads more, on what the student wrote without it.

    What the teacher reads is no part of the loss: `sod.rollout.privilege` puts it before the same response.

    Args:
        section: Its settings; the defaults are those of the paper's release: "jsd" over the vocabulary, no
            reward. `form = "sampled"`, `divergence = "reverse_kl"` and `reward_coefficient = 1` give the form
            that SOD and its baseline "OPD" have.

    Returns:
        The algorithm.

    Source: arXiv 2601.18734; the baselines OPSD_gt and OPSD_hint of arXiv 2605.07725.
    """
    return StepObjective(
        name=section.name,
        divergence=divergence_of(section),
        reward=constant(section.reward_coefficient),
        surrogate=surrogate_of(section),
    )
