"""Algorithms, one paper one file."""

from __future__ import annotations

from dataclasses import replace

from sod.algorithms.atod import atod
from sod.algorithms.base import Algorithm, LossContext, LossOutput
from sod.algorithms.grpo import GRPO, grpo
from sod.algorithms.objective import Divergence, StepObjective
from sod.algorithms.opd import opd
from sod.algorithms.sft import SFT
from sod.algorithms.sod import sod
from sod.algorithms.stm import stm
from sod.config_algorithms import (
    AlgorithmSection,
    ATODSection,
    GRPOSection,
    OPDSection,
    SFTSection,
    SODSection,
    STMSection,
)

__all__ = [
    "GRPO",
    "SFT",
    "Algorithm",
    "Divergence",
    "LossContext",
    "LossOutput",
    "StepObjective",
    "atod",
    "grpo",
    "make_algorithm",
    "opd",
    "sod",
    "stm",
]


def make_algorithm(section: AlgorithmSection, *, vocab_size: int | None = None) -> Algorithm:
    """Make the algorithm that a section of settings describes.

    Args:
        section: Its settings.
        vocab_size: Columns of the logits that are real tokens; None takes those that both models have.

    Returns:
        The algorithm.
    """
    match section:
        case SFTSection():
            return SFT(vocab_size=vocab_size)
        case GRPOSection():
            return replace(grpo(section), vocab_size=vocab_size)
        case OPDSection():
            made = opd(section)
        case SODSection():
            made = sod(section)
        case ATODSection():
            made = atod(section)
        case STMSection():
            made = stm(section)
    return replace(made, vocab_size=vocab_size)
