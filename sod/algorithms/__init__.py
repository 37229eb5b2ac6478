"""Algorithms, one paper one file."""

from __future__ import annotations

from dataclasses import replace

from sod.algorithms.base import Algorithm, LossOutput
from sod.algorithms.distillation import StepDistillation
from sod.algorithms.opd import opd
from sod.algorithms.sft import SFT
from sod.algorithms.sod import sod
from sod.config import AlgorithmSection, SFTSection, SODSection

__all__ = ["SFT", "Algorithm", "LossOutput", "StepDistillation", "make_algorithm", "opd", "sod"]


def make_algorithm(section: AlgorithmSection, *, vocab_size: int | None = None) -> Algorithm:
    """Make the algorithm that a section of settings describes.

    Args:
        section: Its settings.
        vocab_size: Columns of the logits that are real tokens; None takes those that both models have.

    Returns:
        The algorithm.
    """
    if isinstance(section, SFTSection):
        return SFT(vocab_size=vocab_size)
    made = sod(section) if isinstance(section, SODSection) else opd(section)
    return replace(made, vocab_size=vocab_size)
