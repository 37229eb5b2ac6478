"""Makes the teacher that a section of settings describes, and proves that it gives what is asked of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sod.config_algorithms import AlgorithmSection
from sod.config_teachers import (
    AnyTeacherSection,
    ReferenceSection,
    RoutedTeacherSection,
    SelfTeacherSection,
    TeacherSection,
    VLLMTeacherSection,
    is_offloading,
)
from sod.errors import ConfigError
from sod.models import check_same_tokenizer, check_vocabulary, load_model, load_tokenizer, place
from sod.teacher.base import AnyTeacher, Capability
from sod.teacher.kept import KeptTeacher
from sod.teacher.local import LocalTeacher, WeightCopy, copies_to
from sod.teacher.own import CurrentPolicy
from sod.teacher.routed import RoutedTeacher, task_routes
from sod.teacher.vllm_server import VLLMTeacher
from sod.types import Task

SCORES_FOLDER = "teacher_scores"


def make_teacher(
    section: AnyTeacherSection,
    *,
    student: PreTrainedModel,
    tasks: Sequence[Task],
    vocab_size: int,
    max_tokens: int,
    run_folder: Path,
) -> AnyTeacher:
    """Make a teacher.

    Args:
        section: Its settings.
        student: The student with the weights that the run starts from; models are put where it is, those
            that are offloaded into host memory.
        tasks: The training tasks, which name their routes.
        vocab_size: Ids that are tokens.
        max_tokens: Longest sequence that will be scored.
        run_folder: Where scores are kept with the run; nothing is written yet.

    Returns:
        The teacher.

    Raises:
        SodError: It cannot be loaded, its server does not answer, or a task has no route.
    """
    if isinstance(section, SelfTeacherSection):
        return own_teacher(section, student)

    def one(named: TeacherSection | VLLMTeacherSection) -> AnyTeacher:
        made: LocalTeacher | VLLMTeacher
        if isinstance(named, VLLMTeacherSection):
            made = VLLMTeacher(named, vocab_size=vocab_size, max_tokens=max_tokens)
        elif named.offload:
            made = LocalTeacher(load_model(named), copy_weight=copies_to(student.device))
        else:
            made = LocalTeacher(load_model(named, device=student.device))
        if named.keep_scores == "round":
            return made
        return KeptTeacher(
            made,
            named.scores_folder or run_folder / SCORES_FOLDER,
            fingerprint=made.fingerprint,
            num_top=named.num_top,
            vocab_size=vocab_size,
        )

    if isinstance(section, RoutedTeacherSection):
        route_of = task_routes(tasks, section.route_field, tuple(section.routes))
        return RoutedTeacher({name: one(route) for name, route in section.routes.items()}, route_of)
    return one(section)


def own_teacher(section: SelfTeacherSection, student: PreTrainedModel) -> AnyTeacher:
    """Make the student its own teacher: as it is now, or as it stands whenever it is asked."""
    if section.weights == "current":
        return CurrentPolicy(student)
    return _frozen_copy(student, copies_to(student.device) if section.offload else None)


def reference_policy(
    section: ReferenceSection | None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    teacher: AnyTeacher | None,
) -> LocalTeacher:
    """Make the frozen policy that steps are held to; it goes where the teacher goes.

    Args:
        section: Its settings; None for a copy of the student.
        tokenizer: The student's.
        student: The student with the weights that the run starts from.
        teacher: The teacher; where a model of it is offloaded, the reference is too.

    Returns:
        The reference.

    Raises:
        ModelError: It cannot be loaded, or its ids are not the student's.
    """
    copying = [one.copy_weight for one in local_teachers(teacher) if one.copy_weight is not None]
    if section is None:
        return _frozen_copy(student, copying[0] if copying else None)
    check_same_tokenizer(tokenizer, load_tokenizer(section), "reference")
    model = load_model(section, device=None if copying else student.device)
    check_vocabulary(model, tokenizer, "reference")
    return LocalTeacher(model, copy_weight=copying[0] if copying else None)


def _frozen_copy(student: PreTrainedModel, copy_weight: WeightCopy | None) -> LocalTeacher:
    """Freeze a copy of the student, in host memory where its weights are to be copied from there."""
    home = student.device if copy_weight is None else torch.device("cpu")
    return LocalTeacher(place(copy.deepcopy(student), home), copy_weight=copy_weight)


def check_offload(teacher: AnyTeacherSection | None, device: torch.device) -> None:
    """Prove that a teacher that is to wait in host memory scores elsewhere.

    Args:
        teacher: Its settings.
        device: Of the run.

    Raises:
        ConfigError: If the device is the CPU.
    """
    if is_offloading(teacher) and device.type == "cpu":
        raise ConfigError(
            "[teacher] offload = true: this run computes on the CPU, whose memory is the host's, so there is "
            'nothing to gain; wanted a CUDA device and [trainer] device other than "cpu", or no offload'
        )


def local_teachers(teacher: AnyTeacher | None) -> list[LocalTeacher]:
    """Find the models of this process within a teacher."""
    if isinstance(teacher, RoutedTeacher):
        return [found for one in teacher.teachers.values() for found in local_teachers(one)]
    if isinstance(teacher, KeptTeacher):
        return local_teachers(teacher.teacher)
    return [teacher] if isinstance(teacher, LocalTeacher) else []


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
