"""The examination of a machine, and of a run before its first rollout."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from sod.algorithms import make_algorithm
from sod.assembly import (
    make_renderer,
    pick_device,
    require_sections,
)
from sod.chat import ChatRenderer
from sod.config import RunConfig
from sod.config_algorithms import ATODSection
from sod.config_engines import VLLMServerSection
from sod.config_teachers import SelfTeacherSection, TeacherSection, is_offloading, teacher_checkpoints
from sod.doctor.findings import Findings, Level
from sod.doctor.machine import examine_device, examine_kernels, examine_sandbox, examine_versions
from sod.doctor.memory import GIB, FrozenShapes, ModelShape, estimate_host, estimate_phases
from sod.doctor.models import Checkpoint, examine_checkpoint, examine_stops
from sod.doctor.pairs import examine_pair
from sod.doctor.servers import examine_server
from sod.envs.registry import BuiltEnvironment, build_environment
from sod.models import check_same_tokenizer, is_on_hub, load_tokenizer
from sod.rollout.privilege import privilege_of
from sod.run_data import check_tasks, expert_file, load_expert, load_task_file
from sod.run_folder import check_folder
from sod.teacher.factory import check_offload
from sod.types import Task

_NUM_PROMPTS = 64
_TIGHT = 0.85


def examine_machine() -> Findings:
    """Examine this machine without a run: versions, device, kernels, sandbox."""
    findings = Findings()
    examine_versions(findings)
    examine_device(findings)
    examine_kernels(findings, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    examine_sandbox(findings, is_needed=False)
    return findings


def diagnose(config: RunConfig) -> Findings:
    """Examine a run and the machine that it is to run on, without reading a weight.

    Args:
        config: The settings.

    Returns:
        The findings; `is_fatal` says whether the run must not be started.
    """
    findings = Findings()
    examine_versions(findings)
    examine_device(findings)
    with findings.examining("machine", "device"):
        examine_kernels(findings, pick_device(config))
    findings += examine_run(config)
    return findings


def examine_run(config: RunConfig, *, is_offline: bool = False) -> Findings:
    """Examine a run without reading a weight: settings, data, checkpoints, template, tools, memory.

    Every part is examined even where another has a fatal finding, as far as it can be without it.

    Args:
        config: The settings.
        is_offline: Leave checkpoints on the hub alone.

    Returns:
        The findings.
    """
    findings = Findings()
    with findings.examining("settings", "sections"):
        require_sections(config)
        make_algorithm(config.algorithm)
        findings.add("settings", "algorithm", f"{config.algorithm.name}, {config.num_updates} updates")
    _examine_schedules(findings, config)
    _examine_sampling(findings, config)
    tasks = _examine_tasks(findings, config)
    is_own = isinstance(config.teacher, SelfTeacherSection)
    longest = config.max_teacher_tokens if is_own else config.rollout.max_trajectory_tokens
    student = None
    if config.student is not None:
        student = examine_checkpoint(findings, config.student, longest, is_offline=is_offline)
    if isinstance(config.engine, VLLMServerSection):
        examine_server(findings, config.engine, config.rollout.max_trajectory_tokens)
    teachers = _examine_teachers(findings, config, student, is_offline=is_offline)
    reference = _examine_reference(findings, config, student, is_offline=is_offline)
    _examine_environment(findings, config, student, teachers, tasks)
    if student:
        shape = ModelShape.of(student.model)
        with findings.examining("memory", "limit"):
            _examine_memory(findings, config, shape, _frozen_shapes(config, shape, teachers, reference))
        _examine_disk(findings, config, shape)
    return findings


def examine_folder(config: RunConfig, *, resume: bool) -> Findings:
    """Examine whether a run may begin, or go on, in its folder.

    Args:
        config: The settings.
        resume: Whether it is to go on.

    Returns:
        One finding.
    """
    findings = Findings()
    with findings.examining("run folder", "output"):
        check_folder(config, resume=resume)
        findings.add("run folder", "output", str(config.run.output))
    return findings


def _examine_teachers(
    findings: Findings, config: RunConfig, student: Checkpoint | None, *, is_offline: bool
) -> list[Checkpoint]:
    """Examine every teacher; the checkpoints among them come back."""
    teachers = []
    for section in teacher_checkpoints(config.teacher):
        if isinstance(section, TeacherSection):
            longest = config.max_teacher_tokens
            teachers.append(examine_checkpoint(findings, section, longest, is_offline=is_offline))
        else:
            # It scores one token more than a trajectory has.
            examine_server(findings, section, config.max_teacher_tokens + 1)
        is_examined = student is not None and not (is_offline and is_on_hub(section))
        if student is not None and is_examined and config.algorithm.needs_equal_ids:
            with findings.examining("teacher", "tokenizer"):
                check_same_tokenizer(student.tokenizer, load_tokenizer(section))
                findings.add("teacher", "tokenizer", "every id means the same text to student and teacher")
    if is_offloading(config.teacher):
        with findings.examining("teacher", "offload"):
            check_offload(config.teacher, pick_device(config))
            findings.add("teacher", "offload", "in host memory but while it scores a round")
    if isinstance(config.teacher, SelfTeacherSection):
        which = "where the run starts" if config.teacher.weights == "start" else "as it stands"
        findings.add("teacher", "checkpoint", f"the student itself, {which}")
    return [each for each in teachers if each is not None]


def _examine_reference(
    findings: Findings, config: RunConfig, student: Checkpoint | None, *, is_offline: bool
) -> Checkpoint | None:
    if config.reference is None:
        return None
    longest = config.rollout.max_trajectory_tokens
    reference = examine_checkpoint(findings, config.reference, longest, is_offline=is_offline)
    if student is not None and reference is not None:
        with findings.examining("reference", "tokenizer"):
            check_same_tokenizer(student.tokenizer, reference.tokenizer, "reference")
            findings.add("reference", "tokenizer", "every id means the same text to student and reference")
    return reference


def _examine_schedules(findings: Findings, config: RunConfig) -> None:
    """Warn of a schedule that the run is too short for."""
    rounds, warmup = config.trainer.rounds, config.optimizer.warmup_updates
    if isinstance(config.algorithm, ATODSection) and config.algorithm.anneal_rounds > rounds:
        findings.add(
            "settings",
            "annealing",
            f"[algorithm] anneal_rounds = {config.algorithm.anneal_rounds}, but the run ends after {rounds} "
            "rounds, on the way; lower it, or raise [trainer] rounds",
            Level.WARNING,
        )
    if warmup >= config.num_updates:
        findings.add(
            "settings",
            "warm-up",
            f"[optimizer] warmup_updates = {warmup}, but the run has {config.num_updates} updates, so the "
            "learning rate only rises; lower it",
            Level.WARNING,
        )


def _examine_sampling(findings: Findings, config: RunConfig) -> None:
    rollout, algorithm = config.rollout, config.algorithm
    if not algorithm.is_on_policy:
        return
    text = f"temperature {rollout.temperature:g}, top_p {rollout.top_p:g}"
    if rollout.top_p < 1:
        findings.add(
            "settings",
            "sampling",
            f"{text}: the rollouts come from a truncated policy, so averages over them are not the student's "
            "own. Take top_p = 1, or know that it is off-policy.",
            Level.WARNING,
        )
    else:
        ratio = "; probability ratios are taken at this temperature" if algorithm.has_ratio else ""
        findings.add("settings", "sampling", text + ratio)


def _examine_tasks(findings: Findings, config: RunConfig) -> Sequence[Task]:
    tasks: Sequence[Task] = ()
    if config.data is None:
        return tasks
    if config.algorithm.is_on_policy:
        with findings.examining("data", "training tasks"):
            tasks = load_task_file(config, "train")
            wanted = config.trainer.tasks_per_round
            text = f"{len(tasks):,} tasks; a round takes {wanted:,}"
            is_short = len(tasks) < wanted
            repeats = ", so a round meets tasks more than once" if is_short else ""
            findings.add("data", "training tasks", text + repeats, Level.WARNING if is_short else Level.OK)
            check_tasks(config, tasks)
    expert = expert_file(config)
    if expert is not None and not expert.is_file():
        text = f"{str(expert)!r} of [data]: no such file; give expert conversations"
        findings.add("data", "expert trajectories", text, Level.FATAL)
    if config.data.eval is not None:
        with findings.examining("data", "held-out tasks"):
            held_out = load_task_file(config, "eval")
            error = 50 / math.sqrt(len(held_out))
            text = f"{len(held_out):,} tasks: a success rate has a standard error of up to {error:.1f} points"
            findings.add("data", "held-out tasks", text)
    return tasks


def _examine_environment(
    findings: Findings,
    config: RunConfig,
    student: Checkpoint | None,
    teachers: Sequence[Checkpoint],
    tasks: Sequence[Task],
) -> None:
    environment = None
    with findings.examining("environment", "build"):
        environment = build_environment(config.environment) if config.environment is not None else None
        if environment is not None:
            names = ", ".join(tool.name for tool in environment.tools) or "none"
            findings.add("environment", "tools", names)
    try:
        if student is not None and config.student is not None:
            with findings.examining("template", "append-only"):
                renderer = make_renderer(student.tokenizer, environment, config.student)
                findings.add("template", "append-only", "proven: no message changes what came before it")
                pair = examine_pair(findings, config, student.tokenizer, renderer, tasks)
                examine_stops(findings, student, renderer)
                for teacher in teachers:
                    examine_stops(findings, teacher, renderer if pair is None else pair.teacher)
                _examine_renderer(findings, config, renderer)
                _examine_prompts(findings, config, renderer, environment, tasks)
        if environment is not None and any(tool.name == "python" for tool in environment.tools):
            examine_sandbox(findings, is_needed=True)
    finally:
        if environment is not None:
            environment.close()


def _examine_renderer(
    findings: Findings,
    config: RunConfig,
    renderer: ChatRenderer,
) -> None:
    thinking = config.student.enable_thinking if config.student is not None else None
    if not renderer.can_think:
        findings.add("template", "thinking", "the template knows no thinking")
    elif thinking is None:
        findings.add(
            "template",
            "thinking",
            "the template knows thinking and [student] enable_thinking is not set, so its own default holds; "
            "set it",
            Level.WARNING,
        )
    else:
        findings.add("template", "thinking", "on" if thinking else "off")
    expert = expert_file(config)
    if expert is not None and expert.is_file():
        with findings.examining("data", "expert trajectories"):
            findings.add("data", "expert trajectories", f"{len(load_expert(config, renderer)):,}")


def _examine_prompts(
    findings: Findings,
    config: RunConfig,
    renderer: ChatRenderer,
    environment: BuiltEnvironment | None,
    tasks: Sequence[Task],
) -> None:
    if environment is None or not tasks:
        return
    lengths, privilege = [], privilege_of(config.algorithm)
    for task in islice(tasks, _NUM_PROMPTS):
        attempt = environment.factory(task)
        try:
            opening = attempt.reset()
            prompt_ids = renderer.prompt_ids(opening, attempt.tools)
            if privilege is not None:
                told_ids = renderer.prompt_ids(privilege.told(task, opening), attempt.tools)
                privilege.check_length(task, told_ids, prompt_ids)
        finally:
            attempt.close()
        lengths.append(len(prompt_ids))
    longest, room = max(lengths), config.rollout.max_trajectory_tokens
    text = f"at most {longest:,} tokens in {len(lengths)} prompts; a trajectory has {room:,}"
    if longest >= room:
        findings.add(
            "data", "prompts", f"{text}: no room to answer; raise max_trajectory_tokens", Level.FATAL
        )
    elif longest + config.rollout.max_turn_tokens > room:
        findings.add("data", "prompts", f"{text}: a first turn of max_turn_tokens is cut off", Level.WARNING)
    else:
        findings.add("data", "prompts", text)


def _frozen_shapes(
    config: RunConfig, student: ModelShape, checkpoints: Sequence[Checkpoint], reference: Checkpoint | None
) -> FrozenShapes:
    resident: list[ModelShape] = []
    offloaded: list[ModelShape] = []
    for each in checkpoints:
        is_offloaded = isinstance(each.section, TeacherSection) and each.section.offload
        (offloaded if is_offloaded else resident).append(ModelShape.of(each.model))
    if isinstance(config.teacher, SelfTeacherSection) and config.teacher.weights == "start":
        (offloaded if config.teacher.offload else resident).append(student)
    held_to = None if reference is None else ModelShape.of(reference.model)
    return FrozenShapes(resident=resident, offloaded=offloaded, reference=held_to)


def _examine_memory(
    findings: Findings, config: RunConfig, student: ModelShape, teachers: FrozenShapes
) -> None:
    device = pick_device(config)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total = torch.cuda.mem_get_info()[1] if device.type == "cuda" else host
    advice = {
        "rollout": "lower [rollout] max_batch",
        "score": "lower [trainer] max_microbatch_tokens or teacher_cache_mib",
        "update": "lower [trainer] max_microbatch_tokens, or set [student] gradient_checkpointing",
    }
    phases = estimate_phases(config, student, teachers)
    places = [(phase, needed, total, device.type) for phase, needed in phases.items()]
    if teachers.offloaded:
        advice["host"] = "lower [trainer] tasks_per_round or [rollout] num_samples"
        places.append(("host", estimate_host(config, student, teachers), host, "the host"))
    for phase, needed, limit, where in places:
        share = needed / limit
        text = f"about {needed / GIB:.2f} GiB of {limit / GIB:.1f} GiB on {where}, at most"
        level = Level.FATAL if share > 1 else Level.WARNING if share > _TIGHT else Level.OK
        findings.add("memory", phase, text if level is Level.OK else f"{text}; {advice[phase]}", level)


def _examine_disk(findings: Findings, config: RunConfig, student: ModelShape) -> None:
    folder = next(
        parent for parent in (config.run.output, *config.run.output.parents) if Path(parent).exists()
    )
    # Weights and two moments; one more is written before the oldest is removed.
    each = 3 * student.weight_bytes
    needed, free = each * (config.checkpoint.keep_last + 1), shutil.disk_usage(folder).free
    text = f"checkpoints take about {needed / GIB:.2f} GiB of {free / GIB:.1f} GiB free in {folder}"
    level = Level.FATAL if each > free else Level.WARNING if needed > free else Level.OK
    findings.add("disk", "checkpoints", text if level is Level.OK else f"{text}; free some", level)
