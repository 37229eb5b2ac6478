"""On-policy distillation: the divergence from the teacher on the student's own tokens, all steps alike."""

from __future__ import annotations

from sod.algorithms.distillation import StepDistillation
from sod.config import OPDSection


def opd(section: OPDSection) -> StepDistillation:
    """Make the uniform objective, w_k = 1: equation (4) of arXiv 2605.07725 in its vocabulary-wide form."""
    return StepDistillation(
        name="opd",
        divergence=section.divergence,
        beta=section.beta,
        temperature=section.temperature,
        min_log_prob=section.min_log_prob,
    )
