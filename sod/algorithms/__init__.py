"""Algorithms, one paper one file."""

from __future__ import annotations

from sod.algorithms.base import Algorithm, LossOutput
from sod.algorithms.distillation import StepDistillation
from sod.algorithms.opd import opd
from sod.algorithms.sft import SFT
from sod.algorithms.sod import sod
from sod.config import AlgorithmSection, SFTSection, SODSection

__all__ = ["SFT", "Algorithm", "LossOutput", "StepDistillation", "make_algorithm", "opd", "sod"]


def make_algorithm(section: AlgorithmSection) -> Algorithm:
    """Make the algorithm that a section of settings describes."""
    if isinstance(section, SFTSection):
        return SFT()
    return sod(section) if isinstance(section, SODSection) else opd(section)
