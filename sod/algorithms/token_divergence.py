"""The divergence from a teacher that shares the student's ids: one sweep over the tokens of a microbatch.

Where both models gave hidden states their heads are multiplied chunk by chunk inside the sweep, and no
(N, V) logits are ever held; where either gave logits, or a server listed a few ids, the sweep reads those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sod.packing import Batch
from sod.scoring import HiddenRows, ModelScores, TeacherScores, TopScores, logits_of, num_columns
from sod_kernels import (
    PolicyGradient,
    StepKLOutput,
    linear_step_kl,
    linear_topk_step_kl,
    step_kl,
    topk_step_kl,
)
from sod_kernels.types import StepStatistics


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Which divergence from the teacher, and in which form.

    Attributes:
        form: "vocab" or "sampled".
        kind: "reverse_kl", "forward_kl" or "jsd"; "sampled" has the reverse KL only.
        beta: Weight of the teacher in the mixture of "jsd".
        temperature: Divides both logits.
        min_log_prob: Floor in nats under the teacher's log-probs (forward KL: the student's); None for none.
        per_step: "abs_log_ratio" or "kl": what a step's divergence averages.
    """

    form: Literal["vocab", "sampled"] = "vocab"
    kind: str = "reverse_kl"
    beta: float = 0.5
    temperature: float = 1.0
    min_log_prob: float | None = None
    per_step: str = "abs_log_ratio"


@dataclass(frozen=True, kw_only=True)
class TokenInputs:
    """What a sweep reads beside the settings of the divergence.

    Attributes:
        batch: The microbatch, N rows.
        student: Of its rows, differentiable.
        teacher: Of its rows.
        reference: Of its rows, for a second target; None for none.
        vocab_size: Columns that are real tokens; None takes those that all models have.
        weighting: Makes the step weights of the loss from the statistics of the steps; None for 1.
        denominator: Trained tokens of the minibatch.
    """

    batch: Batch
    student: ModelScores
    teacher: TeacherScores
    reference: ModelScores | None
    vocab_size: int | None
    weighting: Callable[[StepStatistics], Tensor] | None
    denominator: float

    @property
    def are_hidden(self) -> bool:
        """Whether no model gave logits."""
        listed = isinstance(self.teacher, TopScores)
        models = (self.student, self.reference) if listed else (self.student, self.teacher, self.reference)
        return all(one is None or isinstance(one, HiddenRows) for one in models)


def sweep_tokens(part: Divergence, inputs: TokenInputs) -> StepKLOutput:
    """Compare student and teacher on the rows of a microbatch.

    Args:
        part: Which divergence.
        inputs: The microbatch.

    Returns:
        Loss, token and step statistics; the loss and what is said of a token are differentiable.
    """
    if inputs.are_hidden:
        return _from_states(part, inputs, {"single_sweep": False})
    options, steps = _options(part, inputs), inputs.batch.row_steps
    student, teacher, reference = logits_of(inputs.student), inputs.teacher, inputs.reference
    if isinstance(teacher, TopScores):
        return topk_step_kl(student, teacher.log_probs, teacher.ids, steps, **options)
    other = logits_of(teacher)
    dtype = torch.promote_types(student.dtype, other.dtype)
    third = None if reference is None else logits_of(reference).to(dtype)
    return step_kl(student.to(dtype), other.to(dtype), steps, reference_logits=third, **options)


def sweep_loss(
    part: Divergence, inputs: TokenInputs, *, coefficient: float, policy: PolicyGradient | None
) -> StepKLOutput:
    """Make a loss and its gradient from hidden states; where the weights allow it, in a single sweep.

    Args:
        part: Which divergence.
        inputs: The microbatch, `are_hidden`.
        coefficient: Factor of the divergence in the loss.
        policy: Term on the sampled tokens that the loss takes in beside it.

    Returns:
        As `sweep_tokens`, but the loss alone is differentiable.
    """
    return _from_states(part, inputs, {"policy_gradient": policy, "kl_coefficient": coefficient})


def _from_states(part: Divergence, inputs: TokenInputs, options: dict[str, Any]) -> StepKLOutput:
    student, teacher, steps = _hidden(inputs.student), inputs.teacher, inputs.batch.row_steps
    options |= _options(part, inputs) | _head("student", student)
    if isinstance(teacher, TopScores):
        listed = (teacher.log_probs, teacher.ids)
        return linear_topk_step_kl(student.hidden, student.weight, *listed, steps, **options)
    other = _hidden(teacher)
    options |= _head("teacher", other)
    if inputs.reference is not None:
        third = _hidden(inputs.reference)
        states = {"reference_hidden": third.hidden, "reference_weight": third.weight}
        options |= states | _head("reference", third)
    return linear_step_kl(student.hidden, student.weight, other.hidden, other.weight, steps, **options)


def _hidden(scores: ModelScores) -> HiddenRows:
    if not isinstance(scores, HiddenRows):
        raise TypeError(
            f"sweep_loss: got {type(scores).__name__} of a model; wanted HiddenRows of all, "
            "or use sweep_tokens"
        )
    return scores


def _head(role: str, scores: HiddenRows) -> dict[str, Any]:
    return {f"{role}_bias": scores.bias, f"{role}_softcap": scores.softcap}


def _options(part: Divergence, inputs: TokenInputs) -> dict[str, Any]:
    """What every function of the family takes by the same name."""
    batch = inputs.batch
    return {
        "sampled_ids": batch.labels,
        "step_trajectory": batch.step_trajectory,
        "num_steps": batch.num_steps,
        "divergence": part.kind,
        "beta": part.beta if part.kind == "jsd" else None,
        "temperature": part.temperature,
        "vocab_size": inputs.vocab_size or _shared(inputs),
        "min_log_prob": part.min_log_prob,
        "step_divergence": part.per_step,
        "weighting": inputs.weighting,
        "token_weights": batch.row_loss_mask.float(),
        "reduction": "token_mean",
        "denominator": inputs.denominator,
    }


def _shared(inputs: TokenInputs) -> int | None:
    """Columns that both models have, where one pads its vocabulary further; None where they agree."""
    if isinstance(inputs.teacher, TopScores):
        return None
    sizes = {num_columns(inputs.student), num_columns(inputs.teacher)}
    return None if len(sizes) == 1 else min(sizes)
