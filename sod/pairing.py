"""What the settings of a run ask for where its teacher has a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sod.chat import ChatRenderer
from sod.chat_templates import TEMPLATES
from sod.config import RunConfig
from sod.config_simct import SimCTSection
from sod.config_teachers import TeacherSection
from sod.errors import ConfigError
from sod.translation import TokenizerPair, TranslatedRound, make_pair, translate_round
from sod.types import Trajectory


def pair_tokenizers(
    config: RunConfig,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase | None],
    renderer: ChatRenderer,
) -> TokenizerPair | None:
    """Bring a student and a teacher with another tokenizer together.

    Args:
        config: The settings.
        tokenizers: The student's and the teacher's.
        renderer: The student's.

    Returns:
        The pair; None where the algorithm needs equal ids.

    Raises:
        SodError: If the two cannot be paired, or the teacher's tokenizer is not known.
    """
    section, (student, teacher) = config.algorithm, tokenizers
    if not isinstance(section, SimCTSection):
        return None
    if teacher is None:
        raise ConfigError(
            f'algorithm "{section.name}" reads the teacher\'s tokenizer; pass teacher_tokenizer='
        )
    options: dict[str, Any] = {}
    if isinstance(config.teacher, TeacherSection):
        options["enable_thinking"] = config.teacher.enable_thinking
        if config.teacher.chat_template != "own":
            options["chat_template"] = TEMPLATES[config.teacher.chat_template]
    return make_pair((student, teacher), renderer, bridge=section.bridge_pairs, **options)


def translate_for(
    config: RunConfig,
    pair: TokenizerPair | None,
    trajectories: Sequence[Trajectory],
    *,
    warn: Callable[[str], None],
) -> TranslatedRound | None:
    """Translate the trajectories of a round as the settings say.

    Args:
        config: The settings.
        pair: Both tokenizers, where the teacher has one of its own.
        trajectories: What the student sampled.
        warn: Told of what had to be left out.

    Returns:
        The translations; None without a pair.

    Raises:
        TranslationError: Naming trajectory and turn of one that cannot be aligned, unless it may be dropped.
    """
    section = config.algorithm
    if pair is None or not isinstance(section, SimCTSection):
        return None
    translated = translate_round(
        trajectories, pair, align=section.align, may_drop=section.misaligned == "drop"
    )
    if translated.problem is not None:
        warn(translated.problem)
    return translated
