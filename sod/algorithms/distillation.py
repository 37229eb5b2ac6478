"""The objective that every algorithm with a teacher shares; they differ in the weighting alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sod.algorithms.base import LossOutput
from sod.packing import Batch
from sod_kernels import SodWeighting, step_kl


@dataclass(frozen=True, kw_only=True)
class StepDistillation:
    """Loss = 1/denominator * sum over steps k of w_k * sum over the tokens of k of KL(student, teacher).

    The divergence is vocabulary-wide and differentiated through the student's softmax: in expectation the
    gradient of the papers' sampled-token advantage form at each prefix, at lower variance.

    Attributes:
        name: Name in a TOML file.
        divergence: "reverse_kl", "forward_kl" or "jsd".
        beta: Weight of the teacher in the mixture of "jsd".
        temperature: Divides both logits.
        min_log_prob: Floor in nats under the log-probs that the divergence divides by; None for none.
        step_divergence: "abs_log_ratio" or "kl": what a step's divergence averages.
        vocab_size: Columns of the logits that are real tokens; None takes those that both models have.
        needs_teacher: It reads teacher logits.
        weighting: Turns step divergences into step weights; None weighs every step with 1.

    Source: arXiv 2605.07725, equations (5), (7) and (9); form (b) of our derivation in docs/math.md.
    """

    name: str
    divergence: str = "reverse_kl"
    beta: float = 0.5
    temperature: float = 1.0
    min_log_prob: float | None = None
    step_divergence: str = "abs_log_ratio"
    weighting: SodWeighting | None = None
    vocab_size: int | None = None
    needs_teacher: bool = True

    def loss(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor | None, denominator: int
    ) -> LossOutput:
        """Compute the loss of a microbatch; see `sod.algorithms.base.Algorithm.loss`."""
        if teacher_logits is None:
            raise ValueError(f"{self.name}: teacher_logits is None; wanted (N, V) logits, pass a teacher.")
        is_trained = batch.row_loss_mask
        dtype = torch.promote_types(student_logits.dtype, teacher_logits.dtype)
        output = step_kl(
            student_logits.to(dtype),
            teacher_logits.to(dtype),
            batch.row_steps,
            sampled_ids=batch.labels,
            step_trajectory=batch.step_trajectory,
            num_steps=batch.num_steps,
            divergence=self.divergence,
            beta=self.beta if self.divergence == "jsd" else None,
            temperature=self.temperature,
            vocab_size=self.vocab_size or shared_vocabulary(student_logits, teacher_logits),
            min_log_prob=self.min_log_prob,
            step_divergence=self.step_divergence,
            weighting=self.weighting,
            token_weights=is_trained.float(),
            reduction="token_mean",
            denominator=float(denominator),
        )
        return LossOutput(
            loss=output.loss,
            token_sums=_token_sums(
                output.token_kl,
                output.student_entropy,
                output.student_log_probs,
                output.teacher_log_probs,
                is_trained,
            ),
            step_divergence=output.step_divergence,
            step_weights=output.step_weights,
            step_tokens=output.step_tokens,
        )


def shared_vocabulary(student_logits: Tensor, teacher_logits: Tensor) -> int | None:
    """Columns that both models have, where one pads its vocabulary further; None where they agree."""
    student_size, teacher_size = student_logits.shape[-1], teacher_logits.shape[-1]
    return None if student_size == teacher_size else min(student_size, teacher_size)


def _token_sums(
    token_kl: Tensor,
    entropy: Tensor,
    student_log_probs: Tensor | None,
    teacher_log_probs: Tensor | None,
    is_trained: Tensor,
) -> dict[str, Tensor]:
    columns = {"kl/token": token_kl, "entropy/token": entropy}
    if student_log_probs is not None and teacher_log_probs is not None:
        columns["log_ratio/token"] = student_log_probs - teacher_log_probs
        columns["log_ratio_abs/token"] = (student_log_probs - teacher_log_probs).abs()
    return {key: torch.where(is_trained, value.detach(), 0.0).sum() for key, value in columns.items()}
