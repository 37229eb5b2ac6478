"""Algorithms, one paper one file."""

from __future__ import annotations

from dataclasses import replace

from sod.algorithms.atod import atod
from sod.algorithms.base import Algorithm, LossContext, LossOutput
from sod.algorithms.gated_opd import gated_opd
from sod.algorithms.gkd import gkd
from sod.algorithms.grpo import GRPO, grpo
from sod.algorithms.iw_opd import iw_opd
from sod.algorithms.objective import StepObjective
from sod.algorithms.opd import opd
from sod.algorithms.opsd import opsd
from sod.algorithms.sft import SFT
from sod.algorithms.simct import simct
from sod.algorithms.sod import sod
from sod.algorithms.stm import stm
from sod.algorithms.tcod import tcod
from sod.algorithms.tip import tip
from sod.algorithms.token_divergence import Divergence
from sod.algorithms.unit_divergence import UnitDivergence
from sod.config_algorithms import (
    AlgorithmSection,
    ATODSection,
    GatedOPDSection,
    GKDSection,
    GRPOSection,
    IWOPDSection,
    OPDSection,
    OPSDAnswerSection,
    OPSDHintSection,
    SFTSection,
    SODSection,
    STMSection,
    TCODSection,
    TIPSection,
)
from sod.config_simct import SimCTSection

__all__ = [
    "GRPO",
    "SFT",
    "Algorithm",
    "Divergence",
    "LossContext",
    "LossOutput",
    "StepObjective",
    "UnitDivergence",
    "atod",
    "gated_opd",
    "gkd",
    "grpo",
    "iw_opd",
    "make_algorithm",
    "opd",
    "opsd",
    "simct",
    "sod",
    "stm",
    "tcod",
    "tip",
]


def make_algorithm(
    section: AlgorithmSection, *, vocab_size: int | None = None, sampling_temperature: float = 1.0
) -> Algorithm:
    """Make the algorithm that a section of settings describes.

    Args:
        section: Its settings.
        vocab_size: Columns of the logits that are real tokens; None takes those that both models have.
        sampling_temperature: Of the rollouts; a policy-gradient term takes its probabilities there.

    Returns:
        The algorithm.
    """
    match section:
        case SFTSection():
            return SFT(vocab_size=vocab_size)
        case GRPOSection():
            return replace(grpo(section), vocab_size=vocab_size, temperature=sampling_temperature)
        case OPDSection():
            made = opd(section)
        case SODSection():
            made = sod(section)
        case ATODSection():
            made = atod(section)
        case STMSection():
            made = stm(section)
        case GatedOPDSection():
            made = gated_opd(section)
        case TCODSection():
            made = tcod(section)
        case IWOPDSection():
            made = iw_opd(section)
        case TIPSection():
            made = tip(section)
        case GKDSection():
            made = gkd(section)
        case OPSDAnswerSection() | OPSDHintSection():
            made = opsd(section)
        case SimCTSection():
            made = simct(section)
    if section.has_ratio:
        made = replace(made, divergence=replace(made.divergence, temperature=sampling_temperature))
    return replace(made, vocab_size=vocab_size)
