"""Makes the teacher that a section of settings describes, and proves that it gives what is asked of it."""

from __future__ import annotations

import torch

from sod.config import TeacherSection
from sod.config_algorithms import AlgorithmSection
from sod.config_teachers import VLLMTeacherSection
from sod.errors import ConfigError
from sod.models import load_model
from sod.teacher.base import AnyTeacher, Capability
from sod.teacher.local import LocalTeacher
from sod.teacher.vllm_server import VLLMTeacher


def make_teacher(
    section: TeacherSection | VLLMTeacherSection, *, device: torch.device, vocab_size: int, max_tokens: int
) -> AnyTeacher:
    """Make a teacher.

    Args:
        section: Its settings.
        device: Where a model in this process is put.
        vocab_size: Ids that are tokens.
        max_tokens: Longest sequence that will be scored.

    Returns:
        The teacher.

    Raises:
        SodError: It cannot be loaded, or its server does not answer.
    """
    if isinstance(section, VLLMTeacherSection):
        return VLLMTeacher(section, vocab_size=vocab_size, max_tokens=max_tokens)
    return LocalTeacher(load_model(section, device=device))


def check_capabilities(teacher: AnyTeacher, algorithm: AlgorithmSection) -> None:
    """Prove that a teacher gives what an algorithm reads.

    Args:
        teacher: The teacher.
        algorithm: The algorithm's settings.

    Raises:
        ConfigError: Naming what is missing.
    """
    given = teacher.capabilities
    if Capability.LOGITS in given:
        return
    if algorithm.needs_reference or not algorithm.needs_equal_ids:
        wanted, is_given = "full logits", False
    elif getattr(algorithm, "form", "vocab") == "vocab":
        wanted, is_given = 'full logits or "top_k"', Capability.TOP_K in given
    else:
        wanted, is_given = 'full logits, "top_k" or "sampled"', bool(given)
    if not is_given:
        listed = ", ".join(sorted(given)) or "nothing"
        raise ConfigError(
            f'algorithm "{algorithm.name}" needs {wanted} of its teacher, but this teacher gives {listed}; '
            "take another teacher or another form"
        )
