"""`step_kl` and its relatives as modules that hold the options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from sod_kernels._options_module import OptionsModule
from sod_kernels.functional import step_kl, topk_step_kl
from sod_kernels.types import StepKLOutput, StepStatistics

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class StepKLLoss(OptionsModule):
    """Hold the options of `step_kl`; the batch is the argument.

    It has no parameters. The options are checked when it is made, kept in `options` and shown by `print`.
    """

    def __init__(
        self,
        *,
        divergence: str = "reverse_kl",
        beta: float | None = None,
        temperature: float = 1.0,
        vocab_size: int | None = None,
        min_log_prob: float | None = None,
        step_divergence: str = "kl",
        weighting: Callable[[StepStatistics], Tensor] | None = None,
        reduction: str = "token_mean",
        single_sweep: bool = False,
        process_group: ProcessGroup | None = None,
        backend: str = "auto",
    ) -> None:
        """Take the options; each means what it does in `step_kl`.

        Args:
            divergence: "reverse_kl", "forward_kl" or "jsd".
            beta: Weight of the teacher in [0, 1], for "jsd" only; None means 0.5.
            temperature: Divides both logits, above 0.
            vocab_size: Valid columns of all logits; None for every one.
            min_log_prob: Floor in nats under the log-probabilities that a KL divides by, or None.
            step_divergence: "kl" or "abs_log_ratio".
            weighting: None, `SodWeighting`, `TurnWeighting` or a function; a tensor of weights fits one batch
                only.
            reduction: "none", "sum", "token_mean", "step_mean" or "sequence_mean".
            single_sweep: Whether the loss alone is differentiable, in a single sweep; without weights only.
            process_group: Of vocabulary-parallel logits, or None.
            backend: "auto", "reference", "native" or "triton".

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If an option has a wrong value.
        """
        super().__init__(locals())

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        step_ids: Tensor | None = None,
        *,
        response_mask: Tensor | None = None,
        sampled_ids: Tensor | None = None,
        reference_logits: Tensor | None = None,
        step_trajectory: Tensor | None = None,
        num_steps: int | None = None,
        token_weights: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> StepKLOutput:
        """Compute the loss of one batch; see `step_kl`.

        Args:
            student_logits: (N, V) or (B, T, V).
            teacher_logits: Same leading shape, dtype and device.
            step_ids: Step of each token, -1 in no step.
            response_mask: 0 and 1 in place of step ids.
            sampled_ids: Token sampled at each position.
            reference_logits: Of a frozen reference policy.
            step_trajectory: (S,) trajectory of each step.
            num_steps: S.
            token_weights: Weight of each token.
            denominator: In place of the last division of a mean.

        Returns:
            Loss, token and step statistics.
        """
        return step_kl(
            student_logits,
            teacher_logits,
            step_ids,
            response_mask=response_mask,
            sampled_ids=sampled_ids,
            reference_logits=reference_logits,
            step_trajectory=step_trajectory,
            num_steps=num_steps,
            token_weights=token_weights,
            denominator=denominator,
            **self.options,
        )


class TopKStepKLLoss(OptionsModule):
    """Hold the options of `topk_step_kl`; the batch is the argument.

    It has no parameters. The options are checked when it is made, kept in `options` and shown by `print`.
    """

    def __init__(
        self,
        *,
        tail: str = "bucket",
        divergence: str = "reverse_kl",
        beta: float | None = None,
        temperature: float = 1.0,
        vocab_size: int | None = None,
        min_log_prob: float | None = None,
        step_divergence: str = "kl",
        weighting: Callable[[StepStatistics], Tensor] | None = None,
        reduction: str = "token_mean",
        process_group: ProcessGroup | None = None,
        backend: str = "auto",
    ) -> None:
        """Take the options; each means what it does in `topk_step_kl`.

        Args:
            tail: "bucket", "renormalise" or "drop".
            divergence: "reverse_kl", "forward_kl" or "jsd".
            beta: Weight of the teacher in [0, 1], for "jsd" only; None means 0.5.
            temperature: Divides the student's logits, above 0.
            vocab_size: Valid columns of the student; None for every one.
            min_log_prob: Floor in nats under the log-probabilities that a KL divides by, or None.
            step_divergence: "kl" or "abs_log_ratio".
            weighting: As in `StepKLLoss`.
            reduction: "none", "sum", "token_mean", "step_mean" or "sequence_mean".
            process_group: Of vocabulary-parallel logits, or None.
            backend: "auto", "reference", "native" or "triton".

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If an option has a wrong value.
        """
        super().__init__(locals())

    def forward(
        self,
        student_logits: Tensor,
        teacher_log_probs: Tensor,
        teacher_ids: Tensor,
        step_ids: Tensor | None = None,
        *,
        response_mask: Tensor | None = None,
        sampled_ids: Tensor | None = None,
        step_trajectory: Tensor | None = None,
        num_steps: int | None = None,
        token_weights: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> StepKLOutput:
        """Compute the loss of one batch; see `topk_step_kl`.

        Args:
            student_logits: (N, V) or (B, T, V).
            teacher_log_probs: (N, K) or (B, T, K).
            teacher_ids: Same shape, negative where absent.
            step_ids: Step of each token, -1 in no step.
            response_mask: 0 and 1 in place of step ids.
            sampled_ids: Token sampled at each position.
            step_trajectory: (S,) trajectory of each step.
            num_steps: S.
            token_weights: Weight of each token.
            denominator: In place of the last division of a mean.

        Returns:
            Loss, token and step statistics.
        """
        return topk_step_kl(
            student_logits,
            teacher_log_probs,
            teacher_ids,
            step_ids,
            response_mask=response_mask,
            sampled_ids=sampled_ids,
            step_trajectory=step_trajectory,
            num_steps=num_steps,
            token_weights=token_weights,
            denominator=denominator,
            **self.options,
        )
