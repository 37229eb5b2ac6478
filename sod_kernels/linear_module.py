"""The functions from hidden states as modules that hold the options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from sod_kernels._options_module import OptionsModule
from sod_kernels.functional import linear_step_kl, linear_topk_step_kl, linear_unit_kl
from sod_kernels.linear.policy import PolicyGradient
from sod_kernels.types import StepKLOutput, StepStatistics
from sod_kernels.unit_types import UnitKLOutput
from sod_kernels.units import Units, VocabMap

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class LinearStepKLLoss(OptionsModule):
    """Hold the options of `linear_step_kl`; heads and batch are the arguments.

    It has no parameters: the heads belong to the models. The options are checked when it is made, kept in
    `options` and shown by `print`.
    """

    def __init__(
        self,
        *,
        student_logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        student_softcap: float | None = None,
        teacher_softcap: float | None = None,
        reference_logit_scale: float = 1.0,
        reference_softcap: float | None = None,
        kl_coefficient: float = 1.0,
        entropy_coefficient: float = 0.0,
        single_sweep: bool = True,
        chunk_size: int | None = None,
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
        """Take the options; each means what it does in `linear_step_kl`.

        Args:
            student_logit_scale: Factor of the student's product, above 0.
            teacher_logit_scale: Factor of the teacher's product, above 0.
            student_softcap: Bound of the student's logits, or None.
            teacher_softcap: Bound of the teacher's logits, or None.
            reference_logit_scale: Factor of the reference's product, above 0.
            reference_softcap: Bound of the reference's logits, or None.
            kl_coefficient: Factor of the divergence, at least 0.
            entropy_coefficient: Factor of the entropy that the loss rewards.
            single_sweep: Whether the loss alone is differentiable, in a single sweep.
            chunk_size: Most rows that are projected together, or None.
            divergence: "reverse_kl", "forward_kl" or "jsd".
            beta: Weight of the teacher in [0, 1], for "jsd" only; None means 0.5.
            temperature: Divides all logits, above 0.
            vocab_size: Valid rows of all weights; None for every one.
            min_log_prob: Floor in nats under the log-probabilities that a KL divides by, or None.
            step_divergence: "kl" or "abs_log_ratio".
            weighting: None, `SodWeighting`, `TurnWeighting` or a function; a tensor of weights fits one batch
                only.
            reduction: "none", "sum", "token_mean", "step_mean" or "sequence_mean".
            process_group: Of vocabulary-parallel heads, or None.
            backend: "auto", "reference", "native" or "triton".

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If an option has a wrong value.
        """
        super().__init__(locals())

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        step_ids: Tensor | None = None,
        *,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        reference_hidden: Tensor | None = None,
        reference_weight: Tensor | None = None,
        reference_bias: Tensor | None = None,
        policy_gradient: PolicyGradient | None = None,
        response_mask: Tensor | None = None,
        sampled_ids: Tensor | None = None,
        step_trajectory: Tensor | None = None,
        num_steps: int | None = None,
        token_weights: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> StepKLOutput:
        """Compute the loss of one batch; see `linear_step_kl`.

        Args:
            student_hidden: (N, H) or (B, T, H).
            student_weight: (V, H).
            teacher_hidden: Same leading shape.
            teacher_weight: (V, teacher's H).
            step_ids: Step of each token, -1 in no step.
            student_bias: (V,) or None.
            teacher_bias: (V,) or None.
            reference_hidden: Of a frozen reference policy; its scale and softcap are read with it only.
            reference_weight: (V, reference's H).
            reference_bias: (V,) or None.
            policy_gradient: Advantages and old log-probabilities, or None.
            response_mask: 0 and 1 in place of step ids.
            sampled_ids: Token sampled at each position.
            step_trajectory: (S,) trajectory of each step.
            num_steps: S.
            token_weights: Weight of each token.
            denominator: In place of the last division of a mean.

        Returns:
            Loss, token and step statistics.
        """
        return linear_step_kl(
            student_hidden,
            student_weight,
            teacher_hidden,
            teacher_weight,
            step_ids,
            student_bias=student_bias,
            teacher_bias=teacher_bias,
            reference_hidden=reference_hidden,
            reference_weight=reference_weight,
            reference_bias=reference_bias,
            policy_gradient=policy_gradient,
            response_mask=response_mask,
            sampled_ids=sampled_ids,
            step_trajectory=step_trajectory,
            num_steps=num_steps,
            token_weights=token_weights,
            denominator=denominator,
            **self.options,
        )


class LinearTopKStepKLLoss(OptionsModule):
    """Hold the options of `linear_topk_step_kl`; head and batch are the arguments.

    It has no parameters: the head belongs to the model. The options are checked when it is made, kept in
    `options` and shown by `print`.
    """

    def __init__(
        self,
        *,
        tail: str = "bucket",
        student_logit_scale: float = 1.0,
        student_softcap: float | None = None,
        kl_coefficient: float = 1.0,
        entropy_coefficient: float = 0.0,
        single_sweep: bool = True,
        chunk_size: int | None = None,
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
        """Take the options; each means what it does in `linear_topk_step_kl`.

        Args:
            tail: "bucket", "renormalise" or "drop".
            student_logit_scale: Factor of the student's product, above 0.
            student_softcap: Bound of the student's logits, or None.
            kl_coefficient: Factor of the divergence, at least 0.
            entropy_coefficient: Factor of the entropy that the loss rewards.
            single_sweep: Whether the loss alone is differentiable, in a single sweep.
            chunk_size: Most rows that are projected together, or None.
            divergence: "reverse_kl", "forward_kl" or "jsd".
            beta: Weight of the teacher in [0, 1], for "jsd" only; None means 0.5.
            temperature: Divides the student's logits, above 0.
            vocab_size: Valid rows of the weight; None for every one.
            min_log_prob: Floor in nats under the log-probabilities that a KL divides by, or None.
            step_divergence: "kl" or "abs_log_ratio".
            weighting: As in `LinearStepKLLoss`.
            reduction: "none", "sum", "token_mean", "step_mean" or "sequence_mean".
            process_group: Of vocabulary-parallel heads, or None.
            backend: "auto", "reference", "native" or "triton".

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If an option has a wrong value.
        """
        super().__init__(locals())

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_log_probs: Tensor,
        teacher_ids: Tensor,
        step_ids: Tensor | None = None,
        *,
        student_bias: Tensor | None = None,
        policy_gradient: PolicyGradient | None = None,
        response_mask: Tensor | None = None,
        sampled_ids: Tensor | None = None,
        step_trajectory: Tensor | None = None,
        num_steps: int | None = None,
        token_weights: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> StepKLOutput:
        """Compute the loss of one batch; see `linear_topk_step_kl`.

        Args:
            student_hidden: (N, H) or (B, T, H).
            student_weight: (V, H).
            teacher_log_probs: (N, K) or (B, T, K).
            teacher_ids: Same shape, negative where absent.
            step_ids: Step of each token, -1 in no step.
            student_bias: (V,) or None.
            policy_gradient: Advantages and old log-probabilities, or None.
            response_mask: 0 and 1 in place of step ids.
            sampled_ids: Token sampled at each position.
            step_trajectory: (S,) trajectory of each step.
            num_steps: S.
            token_weights: Weight of each token.
            denominator: In place of the last division of a mean.

        Returns:
            Loss, token and step statistics.
        """
        return linear_topk_step_kl(
            student_hidden,
            student_weight,
            teacher_log_probs,
            teacher_ids,
            step_ids,
            student_bias=student_bias,
            policy_gradient=policy_gradient,
            response_mask=response_mask,
            sampled_ids=sampled_ids,
            step_trajectory=step_trajectory,
            num_steps=num_steps,
            token_weights=token_weights,
            denominator=denominator,
            **self.options,
        )


class LinearUnitKLLoss(OptionsModule):
    """Hold the options of `linear_unit_kl`; heads, units and batch are the arguments.

    It has no parameters: the heads belong to the models. The options are checked when it is made, kept in
    `options` and shown by `print`.
    """

    def __init__(
        self,
        *,
        student_logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        student_softcap: float | None = None,
        teacher_softcap: float | None = None,
        single_sweep: bool = True,
        chunk_size: int | None = None,
        score: str = "log_prob",
        divergence: str = "reverse_kl",
        beta: float | None = None,
        temperature: float = 1.0,
        unit_filter: str | None = None,
        topk: int | None = None,
        mask_first_token: bool = False,
        min_teacher_mass: float | None = None,
        student_vocab_size: int | None = None,
        teacher_vocab_size: int | None = None,
        step_divergence: str = "kl",
        weighting: Callable[[StepStatistics], Tensor] | None = None,
        reduction: str = "token_mean",
        backend: str = "auto",
    ) -> None:
        """Take the options; each means what it does in `linear_unit_kl`.

        Args:
            student_logit_scale: Factor of the student's product, above 0.
            teacher_logit_scale: Factor of the teacher's product, above 0.
            student_softcap: Bound of the student's logits, or None.
            teacher_softcap: Bound of the teacher's logits, or None.
            single_sweep: Whether the loss alone is differentiable, in a single sweep.
            chunk_size: Most rows that are multiplied together, or None.
            score: "log_prob" or "logit".
            divergence: "reverse_kl", "forward_kl" or "jsd".
            beta: Weight of the teacher in [0, 1], for "jsd" only; None means 0.5.
            temperature: Divides all logits, above 0.
            unit_filter: "one_to_one" or None.
            topk: Columns that each unit compares, or None for all.
            mask_first_token: Whether a span's first tokens do not compete with it.
            min_teacher_mass: Least share of the teacher's probability, in (0, 1], or None.
            student_vocab_size: Valid rows of the student's head; None for every one.
            teacher_vocab_size: Valid rows of the teacher's.
            step_divergence: "kl" or "abs_log_ratio".
            weighting: None, `SodWeighting`, `TurnWeighting` or a function; a tensor of weights fits one batch
                only.
            reduction: "none", "sum", "token_mean", "step_mean" or "sequence_mean".
            backend: "auto", "reference", "native" or "triton".

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If an option has a wrong value.
        """
        super().__init__(locals())

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        units: Units,
        vocab_map: VocabMap,
        *,
        student_ids: Tensor,
        teacher_ids: Tensor,
        step_ids: Tensor | None = None,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        response_mask: Tensor | None = None,
        step_trajectory: Tensor | None = None,
        num_steps: int | None = None,
        token_weights: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> UnitKLOutput:
        """Compute the loss of one batch; see `linear_unit_kl`.

        Args:
            student_hidden: (N, H).
            student_weight: (V, H).
            teacher_hidden: (M, teacher's H).
            teacher_weight: (V of the teacher, its H).
            units: Spans of rows on both sides.
            vocab_map: Paired rows of both heads.
            student_ids: (N,) token that each row predicts.
            teacher_ids: (M,), likewise.
            step_ids: Step of each student token, -1 in no step.
            student_bias: (V,) or None.
            teacher_bias: (V of the teacher,) or None.
            response_mask: 0 and 1 in place of step ids.
            step_trajectory: (S,) trajectory of each step.
            num_steps: S.
            token_weights: Weight of each student token.
            denominator: In place of the last division of a mean.

        Returns:
            Loss, unit and step statistics.
        """
        return linear_unit_kl(
            student_hidden,
            student_weight,
            teacher_hidden,
            teacher_weight,
            units,
            vocab_map,
            student_ids=student_ids,
            teacher_ids=teacher_ids,
            step_ids=step_ids,
            student_bias=student_bias,
            teacher_bias=teacher_bias,
            response_mask=response_mask,
            step_trajectory=step_trajectory,
            num_steps=num_steps,
            token_weights=token_weights,
            denominator=denominator,
            **self.options,
        )
