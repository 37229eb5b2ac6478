"""Does it pay to go where the teacher points? Told from returns, by how sure of itself the student is.

Moving a student p towards its teacher q along p^(1 - a) q^a changes the expected return R by
Cov(R, log q(y) - log p(y)) at a = 0 (docs/math.md, "Two targets"). Here that covariance is measured over the
steps of a cold student in which the teacher is far, split by the ratio of its entropy to the divergence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.evidence.states import AFTER_FAULT, turn_groups, turn_states
from sod import commands
from sod.assembly import num_tokens
from sod.config import RunConfig
from sod.config_teachers import TeacherSection
from sod.envs.ledger_faults import LedgerFaults
from sod.models import load_model, load_tokenizer
from sod.packing import Batch, pack
from sod.scoring import row_logits
from sod.tokenization import tokenize_trajectory
from sod.types import Task, Trajectory
from sod_kernels import step_kl, step_means

FAR = 0.2
"""Mean divergence of a step in nats from which on the teacher counts as far."""
EDGES = (0.25, 0.5, 0.75, 1.0)
"""Where the classes of the ratio entropy / divergence end; the last one has no end."""


@dataclass(frozen=True, kw_only=True)
class FarStep:
    """A step in which the teacher is far.

    Attributes:
        ratio: The student's mean entropy over the mean divergence.
        pull: Sum over tokens of log q(y) - log p(y), less its expectation: how much more like the teacher
            this sample was than the student usually is, nats.
    """

    ratio: float
    pull: float


def guide_sums(
    config: RunConfig, teacher: Path, tasks: Mapping[str, Task], faults: LedgerFaults, num_tasks: int
) -> list[dict[str, float]]:
    """Measure the covariance of return and pull by class of the ratio.

    Args:
        config: The student's, with several attempts per task.
        teacher: Checkpoint.
        tasks: By their ids.
        faults: Those of the tools.
        num_tasks: Tasks that are attempted, from the top.

    Returns:
        For each class: "steps", "after_fault" among them, "sum" of advantage times pull, "squares" of it.
        Advantages are of 0 or 1 solved, less the mean of the attempts at the task.
    """
    attempts = commands.rollout(config, which="train", num_tasks=num_tasks)
    groups = [turn_groups(turn_states(one, tasks[one.task_id], faults)) for one in attempts]
    advantages = _advantages(attempts)
    classes = [{"steps": 0.0, "after_fault": 0.0, "sum": 0.0, "squares": 0.0} for _ in (*EDGES, None)]
    for (index, turn), step in _far_steps(config, teacher, attempts).items():
        sums = classes[sum(step.ratio >= edge for edge in EDGES)]
        product = advantages[index] * step.pull
        sums["steps"] += 1
        sums["after_fault"] += groups[index][turn] == AFTER_FAULT
        sums["sum"] += product
        sums["squares"] += product**2
    return classes


def _advantages(attempts: Sequence[Trajectory]) -> list[float]:
    solved: dict[str, list[bool]] = defaultdict(list)
    for one in attempts:
        solved[one.task_id].append(one.is_success)
    return [one.is_success - sum(solved[one.task_id]) / len(solved[one.task_id]) for one in attempts]


def _far_steps(
    config: RunConfig, teacher: Path, attempts: Sequence[Trajectory]
) -> dict[tuple[int, int], FarStep]:
    """Compare both models on every attempt; steps by attempt and turn."""
    if config.student is None:
        raise ValueError("guide_sums: [student] is missing; wanted the model that made the attempts.")
    student, other = load_model(config.student), load_model(TeacherSection(model=str(teacher)))
    vocab_size = num_tokens(load_tokenizer(config.student))
    batches = pack(
        [tokenize_trajectory(one) for one in attempts],
        range(len(attempts)),
        max_tokens=config.trainer.max_microbatch_tokens,
        pad_id=0,
    )
    found: dict[tuple[int, int], FarStep] = {}
    for batch in batches:
        found |= far_steps(student, other, batch, vocab_size)
    return found


@torch.no_grad()
def far_steps(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, vocab_size: int
) -> dict[tuple[int, int], FarStep]:
    """Find the steps of a microbatch in which the teacher is far.

    Args:
        student: Made the sampled tokens, at temperature 1.
        teacher: Reads the same ids.
        batch: The microbatch.
        vocab_size: Columns that are tokens.

    Returns:
        Those steps, by index of the trajectory and turn.
    """
    output = step_kl(
        row_logits(student, batch)[:, :vocab_size].double(),
        row_logits(teacher, batch)[:, :vocab_size].double(),
        batch.row_steps,
        sampled_ids=batch.labels,
        num_steps=batch.num_steps,
        step_divergence="kl",
    )
    if output.student_log_probs is None or output.teacher_log_probs is None:
        raise ValueError("far_steps: step_kl gave no log-probs of the sampled ids; wanted them.")
    log_ratio = output.teacher_log_probs - output.student_log_probs
    # E_p[log q - log p] is minus the divergence.
    pull = step_means(log_ratio + output.token_kl, batch.row_steps, batch.num_steps) * output.step_tokens
    entropy = step_means(output.student_entropy, batch.row_steps, batch.num_steps).tolist()
    owners = [batch.trajectories[place] for place in batch.step_trajectory.tolist()]
    return {
        (owner, turn): FarStep(ratio=entropy[step] / divergence, pull=float(pull[step]))
        for step, (owner, turn, divergence) in enumerate(
            zip(owners, batch.step_turn.tolist(), output.step_divergence.tolist(), strict=True)
        )
        if divergence > FAR
    }
