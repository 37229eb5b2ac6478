"""SOD: on-policy distillation in which a step that drifts from the teacher counts less."""

from __future__ import annotations

from sod.algorithms.distillation import StepDistillation
from sod.config import SODSection
from sod_kernels import SodWeighting


def sod(section: SODSection) -> StepDistillation:
    """Make SOD's distillation term.

    w_1 = 1 and w_k = min((d_1 + epsilon) / (d_k + epsilon), 1 + delta), d_k the mean step divergence; the
    weights come from the same sweep as the loss and carry no gradient.

    Args:
        section: Its settings; the defaults are the paper's.

    Returns:
        The algorithm. The GRPO term of equation (10) is not part of it.

    Source: arXiv 2605.07725, equations (6), (7) and (9).
    """
    return StepDistillation(
        name="sod",
        divergence=section.divergence,
        beta=section.beta,
        temperature=section.temperature,
        min_log_prob=section.min_log_prob,
        step_divergence=section.step_divergence,
        weighting=SodWeighting(delta=section.delta, epsilon=section.epsilon),
    )
