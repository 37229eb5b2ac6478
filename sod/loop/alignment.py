"""Proof, in every update, that the trainer scores the very tokens that were sampled.

A shifted mask, a token that was tokenised again or stale weights all show as a gap between the log-prob at
sampling time and the trainer's. Before the first update of a round both come from the same weights, so the
gap of every token must be rounding. Afterwards the student has moved on purpose; the mean gap of every
step is measured then, and judged where the run says how far a student may move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sod.config import RunConfig
from sod.errors import RolloutError
from sod.packing import Batch
from sod.scoring import ModelScores, row_log_probs
from sod.types import Trajectory
from sod_kernels import step_means

BOUNDS = {"float32": 0.02, "bfloat16": 1.0}
"""Largest gap of a token that is rounding, nats, by the precision of the student."""

MIN_STEP_TOKENS = 8
"""Tokens that the mean gap of a step is taken over at least; those that a shorter one lacks count as 0."""


@dataclass(frozen=True, kw_only=True)
class Canary:
    """The bounds of a run.

    Attributes:
        temperature: Sampling temperature.
        top_p: Nucleus mass of the sampling. An engine that gives log-probs after the cut is above the
            trainer by the log of the mass kept, at most -log(top_p).
        vocab_size: Columns of the logits that are real tokens.
        bound: Largest gap of a token in the first update of a round, nats.
        step_bound: Largest mean gap of a step in the later ones, nats; None measures it and judges nothing.
    """

    temperature: float
    top_p: float
    vocab_size: int
    bound: float
    step_bound: float | None

    @classmethod
    def of(cls, config: RunConfig, *, vocab_size: int, dtype: torch.dtype) -> Canary:
        """Make the canary that a run asks for.

        Args:
            config: The settings.
            vocab_size: Columns of the logits that are real tokens.
            dtype: Of the student's weights.
        """
        is_low = config.trainer.precision == "bfloat16" or dtype == torch.bfloat16
        return cls(
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            vocab_size=vocab_size,
            bound=config.trainer.alignment_bound or BOUNDS["bfloat16" if is_low else "float32"],
            step_bound=config.trainer.alignment_step_bound,
        )

    def watch(self, trajectories: Sequence[Trajectory], *, is_first: bool) -> Watch:
        """Begin an update.

        Args:
            trajectories: The round's trajectories.
            is_first: Whether it is the first since they were sampled.

        Returns:
            What `run_update` shows its microbatches to.
        """
        return Watch(self, trajectories, is_first=is_first)


class Watch:
    """The canary during one update; called with every microbatch and the student's scores."""

    def __init__(self, canary: Canary, trajectories: Sequence[Trajectory], *, is_first: bool) -> None:
        """Start with no gap seen; see `Canary.watch`."""
        self._canary = canary
        self._trajectories = trajectories
        self._is_first = is_first
        self._largest = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """The largest gap seen, under the name of what was compared."""
        key = "alignment/gap_max" if self._is_first else "alignment/step_gap_max"
        return {key: self._largest}

    def __call__(self, batch: Batch, student: ModelScores) -> None:
        """Compare log-probs at sampling time with those of the trainer.

        Args:
            batch: A microbatch of on-policy trajectories, N rows.
            student: Of the rows, as it stands.

        Raises:
            RolloutError: Naming trajectory, turn and token of the largest gap, if it is beyond the bound.
        """
        if batch.num_rows == 0:
            return
        canary = self._canary
        recomputed = row_log_probs(
            student, batch.labels, temperature=canary.temperature, vocab_size=canary.vocab_size
        )
        differences = batch.row_log_probs - recomputed
        gaps = differences.abs()
        if canary.top_p < 1.0:
            # Between 0 and the log of the mass kept, all that a cut explains.
            gaps = torch.where(differences > 0, (differences + math.log(canary.top_p)).clamp(min=0.0), gaps)
        if self._is_first:
            gaps = torch.where(gaps.isnan(), torch.inf, gaps)
            self._judge(batch, recomputed, gaps, gaps, canary.bound)
        else:
            # A student that has diverged is not misaligned: its update is skipped and counted.
            gaps = torch.where(gaps.isfinite(), gaps, 0.0)
            means = step_means(gaps, batch.row_steps, batch.num_steps).to(gaps.dtype)
            lengths = batch.row_steps.bincount(minlength=batch.num_steps)
            # A rare token moves far in one update, and a step may be no longer than that token.
            means = means * lengths / lengths.clamp(min=MIN_STEP_TOKENS)
            self._judge(batch, recomputed, gaps, means[batch.row_steps], canary.step_bound)

    def _judge(
        self, batch: Batch, recomputed: Tensor, gaps: Tensor, judged: Tensor, bound: float | None
    ) -> None:
        largest = float(judged.max())
        self._largest = max(self._largest, largest)
        if bound is None or largest <= bound:
            return
        # Of the tokens that are judged worst, the one with the largest gap of its own.
        worst = int(torch.where(judged == judged.max(), gaps, -1.0).argmax())
        step = int(batch.row_steps[worst])
        first = int((batch.row_steps == step).nonzero()[0])
        index = batch.trajectories[int(batch.step_trajectory[step])]
        name, kind = ("bound", "gap") if self._is_first else ("step_bound", "mean gap of the step")
        sampled, own = float(batch.row_log_probs[worst]), float(recomputed[worst])
        task, turn = self._trajectories[index].task_id, int(batch.step_turn[step])
        raise RolloutError(
            f"alignment: trajectory {index} (task {task!r}), turn {turn}, token {worst - first} of the turn "
            f"(id {int(batch.labels[worst])}): the engine sampled it at log-prob {sampled:.4f}, the trainer "
            f"scores it {own:.4f}; the {kind} {largest:.4f} is beyond [trainer] alignment_{name} = "
            f"{bound:g}. Token ids, masks or weights of engine and trainer disagree (a vLLM server must give "
            "log-probs of the sampled distribution, see docs/engines.md). Raise the bound only if rounding "
            "(bfloat16) or a large learning rate explains the gap."
        )


def check_versions(trajectories: Sequence[Trajectory], policy_version: int) -> None:
    """Prove that every turn was sampled with the weights that the round began with.

    Args:
        trajectories: What an engine sampled.
        policy_version: Number of optimiser updates behind the student.

    Raises:
        RolloutError: Naming trajectory and turn of the first that was not.
    """
    for index, trajectory in enumerate(trajectories):
        for number, turn in enumerate(trajectory.turns):
            if turn.policy_version != policy_version:
                raise RolloutError(
                    f"alignment: trajectory {index} (task {trajectory.task_id!r}), turn {number} was sampled "
                    f"by the weights of update {turn.policy_version}, but the student is at update "
                    f"{policy_version}; wanted on-policy turns. The engine did not take over the weights."
                )
