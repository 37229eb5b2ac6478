"""The divergence from a teacher with another tokenizer: over units of text instead of tokens.

The second source of a divergence for `StepObjective`; step weights and the reward term work on top of it as
they do on the divergence per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sod.packing import Batch, Counterpart
from sod_kernels import CROSS_TOKENIZER_LOSSES, UnitKLOutput, token_log_probs
from sod_kernels.types import StepStatistics


@dataclass(frozen=True, kw_only=True)
class UnitDivergence:
    """Which divergence over units.

    Attributes:
        loss: Name in `sod_kernels.CROSS_TOKENIZER_LOSSES`; beside `topk` for "uld", only "simct" reads what
            else is here but `temperature` and `unit_filter`.
        score: Of a span: "log_prob" or "logit".
        kind: "reverse_kl", "forward_kl" or "jsd".
        beta: Weight of the teacher in the mixture of "jsd".
        temperature: Divides both logits.
        unit_filter: "one_to_one" leaves spans out; None compares them too.
        topk: Shared columns per unit, the student's likeliest; None for all.
        mask_first_token: Whether the first tokens of a span do not compete with it.
        min_teacher_mass: Units whose columns hold less of the teacher's probability are left out; None for
            none.
        per_step: "abs_log_ratio" or "kl": what a step's divergence averages; the loss itself for others.
        form: Units are compared as distributions.
    """

    loss: str = "simct"
    score: str = "log_prob"
    kind: str = "reverse_kl"
    beta: float = 0.5
    temperature: float = 1.0
    unit_filter: str | None = None
    topk: int | None = None
    mask_first_token: bool = False
    min_teacher_mass: float | None = None
    per_step: str = "abs_log_ratio"
    form: ClassVar[Literal["vocab"]] = "vocab"


@dataclass(frozen=True, kw_only=True)
class UnitSweep:
    """What one pass over the units of a microbatch gives; as `StepKLOutput` where the names agree.

    Attributes:
        loss: Scalar, weighted by step and divided by the tokens of the minibatch.
        step_divergence: (S,) detached.
        step_weights: (S,) detached.
        step_tokens: (S,) int64 student tokens.
        sums: Sums for the metrics, detached.
        student_log_probs: (N,) of the sampled ids, differentiable; None unless asked for.
    """

    loss: Tensor
    step_divergence: Tensor
    step_weights: Tensor
    step_tokens: Tensor
    sums: Mapping[str, Tensor]
    student_log_probs: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class UnitInputs:
    """What a loss over units reads beside its settings.

    Attributes:
        batch: The student's side, N rows.
        counterpart: The teacher's side, M rows, and the units.
        student_logits: (N, V).
        teacher_logits: (M, V of the teacher), same dtype.
        vocab_size: Columns of the student's logits that are real tokens.
        weighting: Makes the step weights from the statistics of the steps.
        denominator: Trained tokens of the minibatch.
    """

    batch: Batch
    counterpart: Counterpart
    student_logits: Tensor
    teacher_logits: Tensor
    vocab_size: int | None
    weighting: Callable[[StepStatistics], Tensor]
    denominator: float


def sweep_units(part: UnitDivergence, inputs: UnitInputs, *, needs_log_probs: bool) -> UnitSweep:
    """Compare student and teacher on the units of a microbatch.

    Args:
        part: Which loss and how.
        inputs: The microbatch.
        needs_log_probs: Whether the log-probs of the sampled ids are read, for a reward term.

    Returns:
        Loss, step statistics and metrics.
    """
    batch, other = inputs.batch, inputs.counterpart
    teacher_table = other.vocab_map.teacher
    output = CROSS_TOKENIZER_LOSSES[part.loss](
        inputs.student_logits,
        inputs.teacher_logits,
        other.units,
        other.vocab_map,
        student_ids=batch.labels,
        teacher_ids=other.batch.labels,
        step_ids=batch.row_steps,
        temperature=part.temperature,
        unit_filter=part.unit_filter,
        student_vocab_size=inputs.vocab_size,
        teacher_vocab_size=None if teacher_table is None else len(teacher_table),
        step_trajectory=batch.step_trajectory,
        num_steps=batch.num_steps,
        weighting=inputs.weighting,
        token_weights=batch.row_loss_mask.float(),
        denominator=inputs.denominator,
        **_own_options(part),
    )
    log_probs = None
    if needs_log_probs:
        log_probs = token_log_probs(
            inputs.student_logits,
            batch.labels,
            temperature=part.temperature,
            vocab_size=inputs.vocab_size,
        ).log_probs
    return UnitSweep(
        loss=output.loss,
        step_divergence=output.step_divergence,
        step_weights=output.step_weights,
        step_tokens=output.step_tokens,
        sums=_unit_sums(output, batch, other),
        student_log_probs=log_probs,
    )


def _own_options(part: UnitDivergence) -> dict[str, Any]:
    """What only some of the losses read."""
    if part.loss == "simct":
        return {
            "score": part.score,
            "divergence": part.kind,
            "beta": part.beta if part.kind == "jsd" else None,
            "topk": part.topk,
            "mask_first_token": part.mask_first_token,
            "min_teacher_mass": part.min_teacher_mass,
            "step_divergence": part.per_step,
        }
    return {"topk": part.topk} if part.loss == "uld" else {}


def _unit_sums(output: UnitKLOutput, batch: Batch, other: Counterpart) -> dict[str, Tensor]:
    first = other.units.student_spans[:, 0]
    is_trained = (output.unit_steps >= 0) & batch.row_loss_mask[first]
    columns = {
        "kl/token": output.unit_kl,
        "entropy/token": output.unit_entropy,
        "unit/compared": torch.ones_like(output.unit_kl),
    }
    if output.unit_student_log_probs is not None and output.unit_teacher_log_probs is not None:
        log_ratio = output.unit_student_log_probs - output.unit_teacher_log_probs
        columns |= {"log_ratio/token": log_ratio, "log_ratio_abs/token": log_ratio.abs()}
    return {key: torch.where(is_trained, value.detach(), 0.0).sum() for key, value in columns.items()}
