"""The objective that every on-policy algorithm here is a preset of.

Three parts: a divergence from the teacher per token, a weight per step, and how both are combined with the
reward. Two forms of the distillation term:

- "vocab": L = kappa * mean of w_k KL(student, teacher) + rho * mean of surrogate(A_i), the divergence
  vocabulary-wide and differentiated through the student's softmax;
- "sampled": L = mean of surrogate(kappa * w_k (log q(y) - log p_old(y)) + rho * A_i), the papers' advantage
  form on sampled tokens, with everything but the ratio taken at sampling time.

At the policy that sampled, without clipping, both have the same expected gradient (docs/math.md).

A teacher with another tokenizer gives a divergence per unit of text instead (`UnitDivergence`), in the form
"vocab"; all else stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sod.algorithms.base import LossContext, LossOutput
from sod.algorithms.policy import ClippedSurrogate
from sod.algorithms.step_weights import FromStatistics, StepContext, StepWeight, is_causal
from sod.algorithms.token_divergence import Divergence, TokenInputs, sweep_loss, sweep_tokens
from sod.algorithms.token_weights import TokenContext, TokenWeight
from sod.algorithms.unit_divergence import UnitDivergence, UnitInputs, UnitSweep, sweep_units
from sod.packing import Batch
from sod.schedules import LinearSchedule, constant
from sod.scoring import ModelScores, TeacherScores, TopScores, logits_of
from sod_kernels import PolicyGradient, StepKLOutput, step_means
from sod_kernels.types import StepStatistics


class _Term(NamedTuple):
    """The distillation term of a microbatch.

    Attributes:
        loss: Scalar; 0 in the sampled form.
        divergence: (S,).
        weights: (S,).
        tokens: (S,).
        student_log_probs: (N,) of the sampled ids, differentiable unless the loss has the reward term in it;
            None where no surrogate reads them.
        sums: For the metrics.
        advantages: (N,) of the sampled form; None else.
        has_reward: Whether the loss has the reward term in it.
    """

    loss: Tensor
    divergence: Tensor
    weights: Tensor
    tokens: Tensor
    student_log_probs: Tensor | None
    sums: Mapping[str, Tensor]
    advantages: Tensor | None = None
    has_reward: bool = False


@dataclass(frozen=True, kw_only=True)
class _Weighing:
    """The step weight of an objective on one microbatch, as a function of the step statistics.

    Attributes:
        weigh: Makes (S,) weights.
        is_causal: Whether a step's weight reads that step and earlier ones of its trajectory.
    """

    weigh: Callable[[StepStatistics], Tensor]
    is_causal: bool

    def __call__(self, statistics: StepStatistics) -> Tensor:
        return self.weigh(statistics)


@dataclass(frozen=True, kw_only=True)
class StepObjective:
    """A preset of divergence, step weight and combination; no state.

    Attributes:
        name: Name in a TOML file.
        divergence: Of the distillation term, per token or per unit of text.
        weight: Turns what is known of the steps into step weights; None weighs every step with 1.
        token_weight: Turns what is known of the tokens into weights beside those; None for 1.
        distillation: Coefficient kappa of the distillation term, by round.
        reward: Coefficient rho of the reward term, by round; 0 leaves it out.
        surrogate: Bounds of the policy-gradient term.
        vocab_size: Columns of the logits that are real tokens; None takes those that both models have.
        needs_teacher: It reads a teacher.
        needs_reference: Whether steps are held to the reference policy with max(0, 1 - w_k): the second
            target, KL(student, reference). Form "vocab" only.
    """

    name: str
    divergence: Divergence | UnitDivergence = field(default_factory=Divergence)
    weight: StepWeight | None = None
    token_weight: TokenWeight | None = None
    distillation: LinearSchedule = field(default_factory=lambda: constant(1.0))
    reward: LinearSchedule = field(default_factory=lambda: constant(0.0))
    surrogate: ClippedSurrogate = field(default_factory=ClippedSurrogate)
    vocab_size: int | None = None
    needs_teacher: bool = True
    needs_reference: bool = False

    def loss(
        self, batch: Batch, student: ModelScores, teacher: TeacherScores | None, context: LossContext
    ) -> LossOutput:
        """Compute the loss of a microbatch; see `sod.algorithms.base.Algorithm.loss`."""
        if teacher is None:
            raise ValueError(f"{self.name}: teacher is None; wanted its scores, pass a teacher.")
        if self.needs_reference and context.reference is None:
            raise ValueError(f"{self.name}: context.reference is None; wanted scores of N rows.")
        kappa, rho = self.distillation.at(context.round_number), self.reward.at(context.round_number)
        term = self._distillation(batch, student, teacher, context, (kappa, rho))
        loss, advantages, sums = term.loss, term.advantages, dict(term.sums)
        if rho != 0:
            reward = rho * batch.row_advantages
            advantages = reward if advantages is None else advantages + reward
        if advantages is not None:
            token_loss, is_clipped = self.surrogate.loss(
                _given(term.student_log_probs), batch.row_log_probs, advantages
            )
            trained = torch.where(batch.row_loss_mask, token_loss, 0.0)
            loss = loss if term.has_reward else loss + trained.sum() / context.denominator
            sums |= _policy_sums(trained, is_clipped, advantages, batch.row_loss_mask)
        return LossOutput(
            loss=loss,
            token_sums=sums,
            step_divergence=term.divergence,
            step_weights=term.weights,
            step_tokens=term.tokens,
            coefficients={"coefficient/distillation": kappa, "coefficient/reward": rho},
        )

    def _distillation(
        self,
        batch: Batch,
        student: ModelScores,
        teacher: TeacherScores,
        context: LossContext,
        coefficients: tuple[float, float],
    ) -> _Term:
        """The distillation term: a loss, or advantages for the surrogate."""
        part, (kappa, rho) = self.divergence, coefficients
        if isinstance(part, UnitDivergence):
            units = self._unit_sweep(part, batch, student, teacher, context, needs_log_probs=rho != 0)
            return _Term(
                loss=kappa * units.loss,
                divergence=units.step_divergence,
                weights=units.step_weights,
                tokens=units.step_tokens,
                student_log_probs=units.student_log_probs,
                sums=units.sums,
            )
        inputs = TokenInputs(
            batch=batch,
            student=student,
            teacher=teacher,
            reference=context.reference if self.needs_reference else None,
            vocab_size=self.vocab_size,
            # The sampled form weighs with what was known at sampling time instead.
            weighting=self._weighing(batch, context) if part.form == "vocab" else None,
            denominator=float(context.denominator),
        )
        # Weights by token are known only after the sweep, advantages of the sampled form too.
        if part.form == "vocab" and self.token_weight is None and inputs.are_hidden:
            policy = self._policy(batch, rho) if rho != 0 else None
            output = sweep_loss(part, inputs, coefficient=kappa, policy=policy)
            return _term(output, batch)._replace(has_reward=policy is not None)
        output = sweep_tokens(part, inputs)
        by_token = self._token_weights(part, batch, output)
        if part.form == "vocab":
            loss = kappa * self._vocab_loss(batch, output, by_token, context)
            return _term(output, batch)._replace(loss=loss)
        return self._sampled_term(batch, output, by_token, context, kappa)

    def _sampled_term(
        self, batch: Batch, output: StepKLOutput, by_token: Tensor | None, context: LossContext, kappa: float
    ) -> _Term:
        """The papers' advantages: no loss of their own."""
        statistics = _at_sampling_time(batch, output)
        weights = self._weights(statistics, batch, context)
        log_ratio = _given(output.teacher_log_probs) - batch.row_log_probs
        by_step = kappa * weights[batch.row_steps]
        return _term(output, batch)._replace(
            loss=output.loss.new_zeros(()),
            advantages=_weighted(by_step if by_token is None else by_step * by_token, log_ratio),
            divergence=statistics.divergence,
            weights=weights,
        )

    def _policy(self, batch: Batch, rho: float) -> PolicyGradient:
        bounds = self.surrogate
        return PolicyGradient(
            advantages=rho * batch.row_advantages,
            old_log_probs=batch.row_log_probs,
            clip_low=bounds.clip_low,
            clip_high=bounds.clip_high,
            dual_clip=bounds.dual_clip,
        )

    def _weighing(self, batch: Batch, context: LossContext) -> Callable[[StepStatistics], Tensor] | None:
        """The step weight as the kernels take it: they know some of them by their type."""
        if self.weight is None:
            return None
        if isinstance(self.weight, FromStatistics):
            return self.weight.weighting
        return _Weighing(
            weigh=lambda statistics: self._weights(statistics, batch, context),
            is_causal=is_causal(self.weight, context.anchor),
        )

    def _unit_sweep(
        self,
        part: UnitDivergence,
        batch: Batch,
        student: ModelScores,
        teacher: TeacherScores,
        context: LossContext,
        *,
        needs_log_probs: bool,
    ) -> UnitSweep:
        if batch.counterpart is None or isinstance(teacher, TopScores):
            raise ValueError(
                f"{self.name}: wanted a batch with a counterpart in the teacher's tokens and the teacher's "
                "logits for it; pack with translated=, take a teacher that gives logits."
            )
        own, other = logits_of(student), logits_of(teacher)
        dtype = torch.promote_types(own.dtype, other.dtype)
        inputs = UnitInputs(
            batch=batch,
            counterpart=batch.counterpart,
            student_logits=own.to(dtype),
            teacher_logits=other.to(dtype),
            vocab_size=self.vocab_size,
            weighting=lambda statistics: self._weights(statistics, batch, context),
            denominator=float(context.denominator),
        )
        return sweep_units(part, inputs, needs_log_probs=needs_log_probs)

    def _token_weights(self, part: Divergence, batch: Batch, output: StepKLOutput) -> Tensor | None:
        if self.token_weight is None:
            return None
        is_sampled = part.form == "sampled"
        own = batch.row_log_probs if is_sampled else _given(output.student_log_probs).detach()
        return self.token_weight(
            TokenContext(
                gap=(own - _given(output.teacher_log_probs)).abs(),
                entropy=output.student_entropy.detach(),
                trajectory=batch.step_trajectory[batch.row_steps],
                is_trained=batch.row_loss_mask,
            )
        )

    def _vocab_loss(
        self, batch: Batch, output: StepKLOutput, by_token: Tensor | None, context: LossContext
    ) -> Tensor:
        if by_token is None:
            return output.loss
        # Known only now, from the same sweep; the gradient of token_kl is still one backward sweep.
        factor = output.step_weights[batch.row_steps] * by_token
        trained = torch.where(batch.row_loss_mask, _weighted(factor, output.token_kl), 0.0)
        return trained.sum() / context.denominator

    def _weights(self, statistics: StepStatistics, batch: Batch, context: LossContext) -> Tensor:
        if self.weight is None:
            return torch.ones_like(statistics.divergence)
        return self.weight(
            StepContext(
                statistics=statistics,
                turn=batch.step_turn,
                errors_before=batch.step_errors,
                round_number=context.round_number,
                anchor=context.anchor,
                advantages=batch.advantages,
            )
        )


def _term(output: StepKLOutput, batch: Batch) -> _Term:
    return _Term(
        loss=output.loss,
        divergence=output.step_divergence,
        weights=output.step_weights,
        tokens=output.step_tokens,
        student_log_probs=output.student_log_probs,
        sums=_token_sums(output, batch.row_loss_mask),
    )


def _given(log_probs: Tensor | None) -> Tensor:
    if log_probs is None:
        raise ValueError("step_kl gave no sampled log-probs; wanted them, pass sampled_ids.")
    return log_probs


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Multiply, where weight 0 silences an infinite value too."""
    return torch.where(weights == 0, 0.0, weights * values)


def _at_sampling_time(batch: Batch, output: StepKLOutput) -> StepStatistics:
    """Step statistics of the policy that sampled, equations (6) of SOD and (14) of ATOD."""
    old, teacher = batch.row_log_probs, _given(output.teacher_log_probs)

    def mean(values: Tensor) -> Tensor:
        return step_means(values, batch.row_steps, batch.num_steps).to(old.dtype)

    return StepStatistics(
        divergence=mean((old - teacher).abs()),
        uncertainty=mean(-old),
        entropy=mean(output.student_entropy.detach()),
        tokens=output.step_tokens,
        trajectory=batch.step_trajectory,
    )


def _token_sums(output: StepKLOutput, is_trained: Tensor) -> dict[str, Tensor]:
    log_ratio = _given(output.student_log_probs) - _given(output.teacher_log_probs)
    columns = {
        "kl/token": output.token_kl,
        "entropy/token": output.student_entropy,
        "log_ratio/token": log_ratio,
        "log_ratio_abs/token": log_ratio.abs(),
    }
    if output.token_reference_kl is not None:
        columns["kl_reference/token"] = output.token_reference_kl
    return {key: torch.where(is_trained, value.detach(), 0.0).sum() for key, value in columns.items()}


def _policy_sums(
    loss: Tensor, is_clipped: Tensor, advantages: Tensor, is_trained: Tensor
) -> dict[str, Tensor]:
    return {
        "policy/loss": loss.detach().sum(),
        "policy/clipped": (is_clipped & is_trained).sum(),
        "policy/advantage_abs": torch.where(is_trained, advantages.abs(), 0.0).sum(),
    }
