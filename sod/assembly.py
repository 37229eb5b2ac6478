"""Builds the parts of a run from its settings, and proves that they fit before any rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sod.chat import ChatRenderer
from sod.chat_templates import TEMPLATES
from sod.config import RunConfig, StudentSection
from sod.config_teachers import (
    SelfTeacherSection,
    TeacherSection,
    check_teacher,
    teacher_checkpoints,
)
from sod.envs.base import EnvironmentFactory
from sod.envs.registry import BuiltEnvironment, build_environment
from sod.envs.tool_entry import tool_environment
from sod.errors import ConfigError
from sod.models import check_same_tokenizer, check_vocabulary, load_model, load_tokenizer, place
from sod.pairing import pair_tokenizers
from sod.rewards import Reward
from sod.run_data import check_tasks, load_expert, load_task_file
from sod.scoring import check_head
from sod.teacher.base import AnyTeacher
from sod.teacher.factory import (
    check_capabilities,
    check_offload,
    local_teachers,
    make_teacher,
    own_teacher,
    reference_policy,
)
from sod.teacher.local import LocalTeacher
from sod.tools import Tool
from sod.translation import TokenizerPair
from sod.types import Task, Trajectory


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """Everything that a trainer works with.

    Attributes:
        student: The model that is trained.
        tokenizer: Its tokenizer, also the teacher's unless there is a pair.
        renderer: Text to ids and back.
        teacher: Scores; None for "sft".
        reference: The policy that "stm" holds steps to; None for an algorithm without.
        environment: What the student acts in; None for "sft" without evaluation.
        tasks: Training tasks; empty for "sft".
        eval_tasks: Held-out tasks.
        expert: Expert trajectories, for "sft" and "gkd".
        pair: Both tokenizers, where the teacher has one of its own.
    """

    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    renderer: ChatRenderer
    teacher: AnyTeacher | None = None
    reference: LocalTeacher | None = None
    environment: BuiltEnvironment | None = None
    tasks: Sequence[Task] = ()
    eval_tasks: Sequence[Task] = ()
    expert: Sequence[Trajectory] = ()
    pair: TokenizerPair | None = None

    @property
    def vocab_size(self) -> int:
        """Columns of the logits that are real tokens; a model may pad its vocabulary beyond them."""
        return num_tokens(self.tokenizer)

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        return self.renderer.pad_id

    @property
    def needs_sampler(self) -> bool:
        """Whether anything is ever rolled out."""
        return self.environment is not None and bool(self.tasks or self.eval_tasks)


def num_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give the number of ids that are tokens."""
    return max(tokenizer.get_vocab().values()) + 1


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
    section, device = require_sections(config), pick_device(config)
    check_offload(config.teacher, device)
    is_sft = not config.algorithm.is_on_policy
    tokenizer = load_tokenizer(section)
    teachers = [load_tokenizer(checkpoint) for checkpoint in teacher_checkpoints(config.teacher)]
    if config.algorithm.needs_equal_ids:
        for one in teachers:
            check_same_tokenizer(tokenizer, one)
    environment = build_environment(config.environment) if config.environment is not None else None
    with closing_on_error(environment):
        renderer = make_renderer(tokenizer, environment, section)
        pair = pair_tokenizers(config, (tokenizer, teachers[0] if teachers else None), renderer)
        has_eval = config.data is not None and config.data.eval is not None
        eval_tasks = load_task_file(config, "eval") if has_eval else ()
        tasks = () if is_sft else load_task_file(config, "train")
        expert = load_expert(config, renderer) if config.algorithm.reads_expert else ()
        check_tasks(config, tasks)
        student = load_student(section, device)
        teacher = _teacher(config, tokenizer, student, tasks)
        parts = RunParts(
            student=student,
            tokenizer=tokenizer,
            renderer=renderer,
            teacher=teacher,
            reference=_reference(config, tokenizer, student, teacher),
            environment=environment,
            tasks=tasks,
            eval_tasks=eval_tasks,
            expert=expert,
            pair=pair,
        )
        check_parts(config, parts)
        return parts


def assemble_policy(config: RunConfig, which: Literal["train", "eval"]) -> RunParts:
    """Build what a rollout needs and no more: student, environment and one task file, no teacher.

    Args:
        config: The settings.
        which: The task file.

    Returns:
        The parts; the tasks are in `tasks`.

    Raises:
        SodError: Whatever does not exist or does not fit.
    """
    if config.student is None:
        raise ConfigError("section [student] is missing; give the model that is sampled")
    if config.environment is None:
        raise ConfigError("section [environment] is missing; it says what the student acts in")
    tasks = load_task_file(config, which)
    tokenizer = load_tokenizer(config.student)
    environment = build_environment(config.environment)
    with closing_on_error(environment):
        renderer = make_renderer(tokenizer, environment, config.student)
        student = load_student(config.student, pick_device(config))
        check_vocabulary(student, tokenizer, "student")
        return RunParts(
            student=student, tokenizer=tokenizer, renderer=renderer, environment=environment, tasks=tasks
        )


def load_student(section: StudentSection, device: torch.device) -> PreTrainedModel:
    """Load the student as its section says."""
    student = load_model(section, device=device)
    if section.gradient_checkpointing:
        # transformers renamed it within 5.x; 5.17 has the old name, a later one warns of it.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable: Any = next(getattr(student, name) for name in names if hasattr(student, name))
        enable()
    return student


def assemble_objects(
    config: RunConfig,
    *,
    student: PreTrainedModel | str,
    teacher: AnyTeacher | PreTrainedModel | SelfTeacherSection | str | None,
    environment: BuiltEnvironment | EnvironmentFactory | None,
    tokenizer: PreTrainedTokenizerBase | None,
    tools: Sequence[Tool | Callable[..., Any]],
    reward: Reward | str | None,
    tasks: Sequence[Task],
    eval_tasks: Sequence[Task],
    expert: Sequence[Trajectory],
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> RunParts:
    """Bring the parts that a Python caller gives into one form; see `sod.trainer.SODTrainer`.

    Returns:
        The parts, checked against each other.

    Raises:
        SodError: Whatever is missing or does not fit.
    """
    device = pick_device(config)
    if isinstance(student, str):
        section = StudentSection(model=student)
        tokenizer = tokenizer or load_tokenizer(section)
        student = load_model(section)
    if tokenizer is None:
        raise ConfigError("SODTrainer: tokenizer is None; wanted the student's, pass tokenizer=")
    if isinstance(teacher, str):
        named = TeacherSection(model=teacher)
        teacher_tokenizer = teacher_tokenizer or load_tokenizer(named)
        teacher = load_model(named)
    student = place(student, device)
    if teacher_tokenizer is not None and config.algorithm.needs_equal_ids:
        check_same_tokenizer(tokenizer, teacher_tokenizer)
    if isinstance(teacher, PreTrainedModel):
        teacher = LocalTeacher(place(teacher, device))
    if isinstance(teacher, SelfTeacherSection):
        check_teacher(teacher, config.algorithm, config.rollout.temperature)
        check_offload(teacher, device)
        teacher = own_teacher(teacher, student)
    check_tasks(config, tasks)
    built = _built_environment(environment, tools, reward)
    renderer = make_renderer(tokenizer, built, None)
    parts = RunParts(
        student=student,
        tokenizer=tokenizer,
        renderer=renderer,
        teacher=teacher,
        reference=_reference(config, tokenizer, student, teacher),
        environment=built,
        tasks=tasks,
        eval_tasks=eval_tasks,
        expert=expert,
        pair=pair_tokenizers(config, (tokenizer, teacher_tokenizer), renderer),
    )
    check_parts(config, parts)
    return parts


def check_parts(config: RunConfig, parts: RunParts) -> None:
    """Prove that the parts are what the algorithm needs, and fit each other.

    Args:
        config: The settings.
        parts: What was built or given.

    Raises:
        SodError: Naming the part and what to do.
    """
    is_sft = not config.algorithm.is_on_policy
    name = config.algorithm.name
    if parts.teacher is not None and not config.algorithm.needs_teacher:
        raise ConfigError(f'a teacher was given, but algorithm "{name}" reads none; remove it')
    if config.algorithm.reads_expert and not parts.expert:
        raise ConfigError(f'algorithm "{name}" needs expert trajectories, but there are none; pass expert=')
    if not config.algorithm.reads_expert and parts.expert:
        raise ConfigError(f'expert trajectories were given, but algorithm "{name}" reads none; remove them')
    if config.algorithm.needs_teacher and parts.teacher is None:
        raise ConfigError(f'algorithm "{name}" needs a teacher, but there is none; pass teacher=')
    if not is_sft and parts.environment is None:
        raise ConfigError(f'algorithm "{name}" needs an environment; pass environment=, or tools= and reward')
    if not is_sft and not parts.tasks:
        raise ConfigError(f'algorithm "{name}" needs tasks, but there are none; pass tasks=')
    if config.evaluation.every and (not parts.eval_tasks or parts.environment is None):
        raise ConfigError(
            f"[evaluation] every = {config.evaluation.every}: needs held-out tasks and an environment; "
            "give both or set every = 0"
        )
    check_vocabulary(parts.student, parts.tokenizer, "student")
    check_head(parts.student, "student")
    if parts.teacher is not None:
        check_capabilities(parts.teacher, config.algorithm)
    for one in local_teachers(parts.teacher):
        if one.model is parts.student:
            raise ConfigError("student and teacher are one object, which is frozen now; load the model twice")
        tokenizer = parts.tokenizer if parts.pair is None else parts.pair.teacher_tokenizer
        check_vocabulary(one.model, tokenizer, "teacher")
        check_head(one.model, "teacher")


def require_sections(config: RunConfig) -> StudentSection:
    """Prove that a configuration describes every part that its algorithm needs.

    Args:
        config: The settings.

    Returns:
        The student's section.

    Raises:
        ConfigError: Naming the section that is missing.
    """
    is_sft = not config.algorithm.is_on_policy
    if config.student is None:
        raise ConfigError("section [student] is missing; give the model that is trained")
    if config.data is None:
        raise ConfigError("section [data] is missing; give the training file")
    if config.teacher is None and config.algorithm.needs_teacher:
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
    options: dict[str, Any] = {}
    if environment is not None:
        options |= {"tools": environment.tools, "stop_tokens": environment.stop_tokens}
        options |= {"call_format": environment.call_format}
    if student is not None:
        options |= {"enable_thinking": student.enable_thinking, "rewrites": student.history_rewrites}
        if student.chat_template != "own":
            options["chat_template"] = TEMPLATES[student.chat_template]
        if student.call_format != "auto":
            options["call_format"] = student.call_format
    return ChatRenderer(tokenizer, **options)


def _teacher(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, student: PreTrainedModel, tasks: Sequence[Task]
) -> AnyTeacher | None:
    if config.teacher is None:
        return None
    return make_teacher(
        config.teacher,
        student=student,
        tasks=tasks,
        vocab_size=num_tokens(tokenizer),
        max_tokens=config.max_teacher_tokens,
        run_folder=config.run.output,
    )


def _reference(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    teacher: AnyTeacher | None,
) -> LocalTeacher | None:
    if not config.algorithm.needs_reference:
        return None
    reference = reference_policy(config.reference, tokenizer=tokenizer, student=student, teacher=teacher)
    check_head(reference.model, "reference")
    return reference


def _built_environment(
    environment: BuiltEnvironment | EnvironmentFactory | None,
    tools: Sequence[Tool | Callable[..., Any]],
    reward: Reward | str | None,
) -> BuiltEnvironment | None:
    has_tools = bool(tools) or reward is not None
    if environment is not None and has_tools:
        raise ConfigError("SODTrainer: got environment and tools or reward; wanted one of the two")
    if isinstance(environment, BuiltEnvironment) or (environment is None and not has_tools):
        return environment
    if environment is not None:
        return BuiltEnvironment(factory=environment)
    if reward is None:
        raise ConfigError("SODTrainer: got tools without a reward; pass reward=, a name or a function")
    return tool_environment(tools, reward)


@contextmanager
def closing_on_error(environment: BuiltEnvironment | None) -> Iterator[None]:
    """Close an environment if what is built on it fails."""
    try:
        yield
    except BaseException:
        if environment is not None:
            environment.close()
        raise
