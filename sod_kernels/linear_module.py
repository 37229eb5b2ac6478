"""`linear_step_kl` as a module that holds the options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sod_kernels._checks import arguments, values, weightings
from sod_kernels._checks import hidden as checks
from sod_kernels.functional import linear_step_kl
from sod_kernels.linear.policy import PolicyGradient
from sod_kernels.types import StepKLOutput, StepStatistics

_DEFAULTS: dict[str, Any] = {
    "student_logit_scale": 1.0,
    "teacher_logit_scale": 1.0,
    "student_softcap": None,
    "teacher_softcap": None,
    "reference_logit_scale": 1.0,
    "reference_softcap": None,
    "kl_coefficient": 1.0,
    "entropy_coefficient": 0.0,
    "single_sweep": True,
    "chunk_size": None,
    "divergence": "reverse_kl",
    "beta": None,
    "temperature": 1.0,
    "vocab_size": None,
    "min_log_prob": None,
    "step_divergence": "kl",
    "weighting": None,
    "reduction": "token_mean",
    "backend": "auto",
}


class LinearStepKLLoss(nn.Module):
    """Hold the options of `linear_step_kl`; heads and batch are the arguments.

    It has no parameters: the heads belong to the models. The options are checked when it is made and shown by
    `print`.
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
            backend: "auto", "reference", "native" or "triton".

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If an option has a wrong value.
        """
        super().__init__()
        name = type(self).__name__
        checks.check_scales(
            name,
            student=(student_logit_scale, student_softcap),
            teacher=(teacher_logit_scale, teacher_softcap),
            reference=(reference_logit_scale, reference_softcap),
        )
        checks.check_coefficients(name, kl_coefficient, entropy_coefficient)
        arguments.check_divergence(name, divergence, beta, temperature, min_log_prob)
        arguments.check_options(name, step_divergence, reduction, backend)
        checks.check_mode(name, single_sweep, reduction, chunk_size)
        weightings.check_weighting(name, weighting, may_be_tensor=False)
        if vocab_size is not None:
            values.check_count(name, "vocab_size", vocab_size, at_least=1)
        self.student_logit_scale, self.student_softcap = student_logit_scale, student_softcap
        self.teacher_logit_scale, self.teacher_softcap = teacher_logit_scale, teacher_softcap
        self.reference_logit_scale, self.reference_softcap = reference_logit_scale, reference_softcap
        self.kl_coefficient, self.entropy_coefficient = kl_coefficient, entropy_coefficient
        self.single_sweep, self.chunk_size = single_sweep, chunk_size
        self.divergence, self.beta, self.temperature = divergence, beta, temperature
        self.vocab_size, self.min_log_prob = vocab_size, min_log_prob
        self.step_divergence, self.weighting = step_divergence, weighting
        self.reduction, self.backend = reduction, backend

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
        options = {name: getattr(self, name) for name in _DEFAULTS}
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
            **options,
        )

    def extra_repr(self) -> str:
        """Show the options that differ from their defaults.

        Returns:
            Such as "divergence='jsd', beta=0.3".
        """
        shown = ((name, getattr(self, name)) for name in _DEFAULTS)
        return ", ".join(f"{name}={value!r}" for name, value in shown if value != _DEFAULTS[name])
