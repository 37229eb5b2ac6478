"""One optimiser update from the microbatches of a minibatch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from sod.algorithms import Algorithm, LossContext, LossOutput
from sod.loop.scores import check_scores
from sod.optim import OptimizerSet
from sod.packing import Batch
from sod.scoring import ModelScores, row_states
from sod.teacher.cache import Targets


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """One step as the loss saw it.

    Attributes:
        trajectory: Index of its trajectory in the round.
        turn: Its turn within the trajectory.
        tokens: Its response tokens.
        divergence: Mean divergence in nats.
        weight: Weight that was applied.
    """

    trajectory: int
    turn: int
    tokens: int
    divergence: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """What one update gives.

    Attributes:
        metrics: Flat numbers by name.
        steps: Every step of the minibatch.
        is_skipped: Whether the gradient was not finite, so that the weights are as before.
    """

    metrics: dict[str, float]
    steps: list[StepStats]
    is_skipped: bool


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """How an update is made.

    Attributes:
        context: Trained tokens of the whole minibatch, and the round.
        learning_rate: Learning rate of AdamW at this update.
        learning_rate_scale: Its share of the peak, which holds for Muon too.
        max_grad_norm: Norm that gradients are clipped to.
        autocast_dtype: Type of the student's matrix products; None for the weights' own.
    """

    context: LossContext
    learning_rate: float
    learning_rate_scale: float
    max_grad_norm: float
    autocast_dtype: torch.dtype | None = None

    def autocast(self, device_type: str) -> torch.autocast:
        """Give the context that the student runs in."""
        return torch.autocast(device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None)


def run_update(
    model: PreTrainedModel,
    optimizer: OptimizerSet,
    algorithm: Algorithm,
    batches: Sequence[Batch],
    targets: Callable[[int, Batch], Targets],
    settings: UpdateSettings,
    inspect: Callable[[Batch, ModelScores], None] | None = None,
) -> UpdateResult:
    """Make one update; microbatches add up to the gradient of the whole minibatch.

    Args:
        model: The student; its weights change unless the gradient is not finite.
        optimizer: Holds the student's parameters.
        algorithm: Gives the loss.
        batches: Microbatches of the minibatch.
        targets: Gives what a microbatch is compared with, by its position and itself.
        settings: How to make it.
        inspect: Called with each microbatch and the student's scores before any weight changes.

    Returns:
        Metrics and steps.

    Raises:
        TrainingError: If the gradient is not finite because the teacher's scores are not.
    """
    started, teacher_s = time.perf_counter(), 0.0
    model.train()
    optimizer.zero_grad()
    outputs: list[LossOutput] = []
    for index, batch in enumerate(batches):
        moved = batch.to(model.device)
        before_teacher = time.perf_counter()
        target = targets(index, moved)
        teacher_s += time.perf_counter() - before_teacher
        with settings.autocast(model.device.type):
            scores = row_states(model, moved)
        if inspect is not None:
            inspect(moved, scores.detach())
        context = replace(settings.context, reference=target.reference)
        output = algorithm.loss(moved, scores, target.teacher, context)
        torch.autograd.backward(output.loss)
        outputs.append(replace(output, loss=output.loss.detach()))
    grad_norm = float(optimizer.clip(settings.max_grad_norm))
    is_skipped = not math.isfinite(grad_norm)
    if not is_skipped:
        optimizer.step(settings.learning_rate_scale)
    optimizer.zero_grad()
    model.train(False)
    if is_skipped:
        for index, batch in enumerate(batches):
            moved = batch.to(model.device)
            check_scores(moved, targets(index, moved))
    steps = [row for pair in zip(batches, outputs, strict=True) for row in step_stats(*pair)]
    metrics = {
        "grad/norm": grad_norm,
        "update/is_skipped": float(is_skipped),
        **_metrics(outputs, steps, settings),
    }
    metrics |= {"time/teacher_s": teacher_s, "time/update_s": time.perf_counter() - started - teacher_s}
    return UpdateResult(metrics=metrics, steps=steps, is_skipped=is_skipped)


def step_stats(batch: Batch, output: LossOutput) -> list[StepStats]:
    """Read the steps of a microbatch off the loss output."""
    columns = zip(
        batch.step_trajectory.tolist(),
        batch.step_turn.tolist(),
        output.step_tokens.tolist(),
        output.step_divergence.tolist(),
        output.step_weights.tolist(),
        strict=True,
    )
    return [
        StepStats(
            trajectory=batch.trajectories[place],
            turn=turn,
            tokens=tokens,
            divergence=divergence,
            weight=weight,
        )
        for place, turn, tokens, divergence, weight in columns
    ]


def _metrics(
    outputs: Sequence[LossOutput], steps: Sequence[StepStats], settings: UpdateSettings
) -> dict[str, float]:
    metrics = {"loss/total": math.fsum(float(output.loss) for output in outputs)}
    for key in outputs[0].token_sums if outputs else ():
        total = math.fsum(float(output.token_sums[key]) for output in outputs)
        metrics[f"{key}_mean"] = total / settings.context.denominator
    metrics |= outputs[0].coefficients if outputs else {}
    num_steps = max(1, len(steps))
    metrics["step/weight_mean"] = math.fsum(step.weight for step in steps) / num_steps
    metrics["step/divergence_mean"] = math.fsum(step.divergence for step in steps) / num_steps
    metrics["update/tokens"] = float(settings.context.denominator)
    metrics["update/steps"] = float(len(steps))
    metrics["update/learning_rate"] = settings.learning_rate
    return metrics
