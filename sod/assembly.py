"""Builds the parts of a run from its settings, and proves that they fit before any rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sod.chat import ChatRenderer
from sod.config import RunConfig, SFTSection, StudentSection, TeacherSection
from sod.data import expert_trajectories, load_tasks
from sod.envs.registry import BuiltEnvironment, build_environment
from sod.errors import ConfigError
from sod.models import check_same_tokenizer, check_vocabulary, load_model, load_tokenizer
from sod.rollout.store import read_trajectories
from sod.scoring import check_head
from sod.teacher.base import Teacher
from sod.teacher.local import LocalTeacher
from sod.types import Task, Trajectory


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """Everything that a trainer works with.

    Attributes:
        student: The model that is trained.
        tokenizer: Its tokenizer, also the teacher's.
        renderer: Text to ids and back; None without an environment.
        teacher: Scores; None for "sft".
        environment: What the student acts in; None for "sft" without evaluation.
        tasks: Training tasks; empty for "sft".
        eval_tasks: Held-out tasks.
        expert: Expert trajectories, for "sft" only.
    """

    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    renderer: ChatRenderer | None = None
    teacher: Teacher | None = None
    environment: BuiltEnvironment | None = None
    tasks: Sequence[Task] = ()
    eval_tasks: Sequence[Task] = ()
    expert: Sequence[Trajectory] = ()


def pick_device(config: RunConfig) -> torch.device:
    """Give the device that a run is set to.

    Raises:
        ConfigError: If it is "cuda" and there is none.
    """
    wanted, has_cuda = config.trainer.device, torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise ConfigError('[trainer] device = "cuda": no CUDA device is visible; take "auto" or "cpu"')
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")


def assemble(config: RunConfig) -> RunParts:
    """Build every part that a TOML file describes.

    Cheap things come first (sections, files, tokenizers, template, tools), weights last.

    Args:
        config: Its settings.

    Returns:
        The parts, checked against each other.

    Raises:
        SodError: Whatever does not exist or does not fit; ConfigError, DataError, ModelError,
            TemplateError or SandboxUnavailableError.
    """
    student_section = require_sections(config)
    tokenizer = load_tokenizer(student_section)
    if config.teacher is not None:
        check_same_tokenizer(tokenizer, load_tokenizer(config.teacher))
    environment = build_environment(config.environment) if config.environment is not None else None
    try:
        renderer = make_renderer(tokenizer, environment, student_section)
        tasks, eval_tasks, expert = load_data(config, renderer)
        device = pick_device(config)
        student = load_model(student_section, device=device)
        check_vocabulary(student, tokenizer, "student")
        check_head(student, "student")
        if student_section.gradient_checkpointing:
            student.gradient_checkpointing_enable()
        teacher = load_teacher(config.teacher, tokenizer, device)
    except BaseException:
        if environment is not None:
            environment.close()
        raise
    return RunParts(
        student=student,
        tokenizer=tokenizer,
        renderer=renderer,
        teacher=teacher,
        environment=environment,
        tasks=tasks,
        eval_tasks=eval_tasks,
        expert=expert,
    )


def require_sections(config: RunConfig) -> StudentSection:
    """Prove that a configuration describes every part that its algorithm needs.

    Args:
        config: The settings.

    Returns:
        The student's section.

    Raises:
        ConfigError: Naming the section that is missing.
    """
    is_sft = isinstance(config.algorithm, SFTSection)
    if config.student is None:
        raise ConfigError("section [student] is missing; give the model that is trained")
    if config.data is None:
        raise ConfigError("section [data] is missing; give the training file")
    if config.teacher is None and not is_sft:
        raise ConfigError(f'section [teacher] is missing; algorithm "{config.algorithm.name}" needs one')
    if config.environment is None and not (is_sft and config.data.eval is None):
        raise ConfigError("section [environment] is missing; it says what the student acts in")
    return config.student


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, environment: BuiltEnvironment | None, student: StudentSection | None
) -> ChatRenderer:
    """Make the renderer for a tokenizer and the tools of an environment.

    Raises:
        TemplateError: If the chat template rewrites what came before.
    """
    return ChatRenderer(
        tokenizer,
        tools=environment.tools if environment is not None else (),
        stop_tokens=environment.stop_tokens if environment is not None else (),
        enable_thinking=student.enable_thinking if student is not None else None,
    )


def load_data(
    config: RunConfig, renderer: ChatRenderer
) -> tuple[Sequence[Task], Sequence[Task], Sequence[Trajectory]]:
    """Read the task files of a run: training tasks, held-out tasks, expert trajectories.

    Raises:
        DataError: Naming file, row and column.
    """
    data = config.data
    if data is None:
        return (), (), ()
    columns = {"prompt_column": data.prompt_column, "answer_column": data.answer_column}
    tasks: Sequence[Task] = ()
    expert: Sequence[Trajectory] = ()
    if isinstance(config.algorithm, SFTSection):
        if data.train.name.endswith(".jsonl.gz"):
            expert = read_trajectories(data.train)
        else:
            expert = expert_trajectories(data.train, renderer)
        expert = expert[: data.train_limit]
    else:
        tasks = load_tasks(data.train, limit=data.train_limit, **columns)
    eval_tasks = load_tasks(data.eval, limit=data.eval_limit, **columns) if data.eval is not None else ()
    return tasks, eval_tasks, expert


def load_teacher(
    section: TeacherSection | None, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Teacher | None:
    """Load the teacher of a section, checked; None where there is no section."""
    if section is None:
        return None
    model = load_model(section, device=device)
    check_vocabulary(model, tokenizer, "teacher")
    check_head(model, "teacher")
    return LocalTeacher(model)
