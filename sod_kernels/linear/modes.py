"""The two modes of `linear_step_kl` and `linear_topk_step_kl`, each from checked inputs to the output.

In a single sweep one op makes the loss and its gradients. In two sweeps one op makes the token outputs, the
loss is built on them with autograd, and a second op makes the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels._checks import weightings
from sod_kernels._reduction import reduce_loss, step_weights
from sod_kernels.functional.options import Weighting
from sod_kernels.functional.output import make_output, step_statistics
from sod_kernels.linear import ops
from sod_kernels.linear.inputs import LinearInputs, LinearOptions, Objective
from sod_kernels.linear.policy import PolicyGradient, policy_terms
from sod_kernels.linear.terms import loss_terms
from sod_kernels.linear.weights import is_causal, registered
from sod_kernels.types import StepKLOutput, TokenStats
from sod_kernels.weighting import SodWeighting


class Batch(NamedTuple):
    """Checked inputs; ids in the leading shape and trajectories are where the hidden states are."""

    inputs: LinearInputs
    options: LinearOptions
    ids: Tensor
    trajectory: Tensor
    planned_trajectory: Tensor

    @property
    def has_sampled(self) -> bool:
        """Whether there are sampled ids."""
        return self.inputs.sampled_ids is not None

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference."""
        return self.inputs.reference_hidden is not None


class Loss(NamedTuple):
    """What the loss is made of."""

    policy: PolicyGradient | None
    kl_coefficient: float
    entropy_coefficient: float
    step_divergence: str
    weighting: Weighting
    token_weights: Tensor | None
    reduction: str
    denominator: Tensor | None


def optional_float(number: float | None) -> float | None:
    """Turn a number into a float, which ops take.

    Args:
        number: Or None.

    Returns:
        The same.
    """
    return None if number is None else float(number)


def is_known_in_time(weighting: Weighting) -> bool:
    """Say whether weights can be had during the sweep.

    Args:
        weighting: As given by the caller.

    Returns:
        False if the two modes have to be one.
    """
    if torch.compiler.is_compiling() and callable(weighting):
        return type(weighting) is SodWeighting
    return is_causal(weighting)


def _shaped(outputs: Sequence[Tensor], batch: Batch) -> TokenStats:
    """Token outputs in the leading shape; those that were not asked for have no entries."""
    is_given = (True, batch.has_reference, batch.has_sampled, batch.has_sampled, True, False, False)
    shape = batch.ids.shape
    return TokenStats._make(
        each.view(shape) if is_token else each for each, is_token in zip(outputs, is_given, strict=True)
    )


def run_single(batch: Batch, loss: Loss) -> StepKLOutput:
    """Make loss and gradients in one op.

    Args:
        batch: Checked inputs.
        loss: What it is made of; its weighting is known in time.

    Returns:
        The output, of which only the loss is differentiable.
    """
    weighting, inputs, options = loss.weighting, batch.inputs, batch.options
    weights = weighting if isinstance(weighting, Tensor) else None
    if weights is not None:
        like = inputs.student_hidden.new_empty(options.num_steps)
        weightings.check_step_weights(options.function, weights, like)
    sod = weighting if type(weighting) is SodWeighting else None
    is_own = callable(weighting) and sod is None
    policy = loss.policy
    learned = inputs[:3]
    wanted = (torch.is_grad_enabled() and each is not None and each.requires_grad for each in learned)

    def flat(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().reshape(-1)

    with registered(weighting) if is_own and callable(weighting) else nullcontext(0) as key:
        objective = Objective(
            step_trajectory=batch.planned_trajectory,
            step_weights=None if weights is None else weights.detach(),
            token_weights=flat(loss.token_weights),
            denominator=loss.denominator,
            advantages=None if policy is None else flat(policy.advantages),
            old_log_probs=None if policy is None else flat(policy.old_log_probs),
            weighting=key,
            delta=None if sod is None else float(sod.delta),
            epsilon=None if sod is None else float(sod.epsilon),
            clip_low=0.0 if policy is None else float(policy.clip_low),
            clip_high=0.0 if policy is None else float(policy.clip_high),
            dual_clip=None if policy is None else optional_float(policy.dual_clip),
            kl_coefficient=loss.kl_coefficient,
            entropy_coefficient=loss.entropy_coefficient,
            step_divergence=loss.step_divergence,
            reduction=loss.reduction,
        )
        value, *tokens, sums, applied = ops.linear_step_kl_loss(*inputs, *options, *objective, *wanted)[:8]
    # The row state stays inside the op, and nothing here reads it.
    stats = _shaped((*tokens, sums, sums), batch)
    return _output(batch, loss, value, stats, applied)


def run_double(batch: Batch, loss: Loss, *, is_detached: bool) -> StepKLOutput:
    """Make token outputs in one op, the loss on top of them, and on demand the gradients in a second op.

    Args:
        batch: Checked inputs.
        loss: What it is made of.
        is_detached: Whether only the loss is differentiable, as after a single sweep.

    Returns:
        The output.
    """
    stats = _shaped(ops.linear_step_kl_forward(*batch.inputs, *batch.options), batch)
    statistics = step_statistics(stats, batch.trajectory, loss.step_divergence, has_sampled=batch.has_sampled)
    weights = step_weights(batch.options.function, loss.weighting, statistics)
    policy = loss.policy
    terms = loss_terms(
        stats,
        weights,
        has_reference=batch.has_reference,
        policy_term=None if policy is None else _policy_term(stats.student_log_probs, policy, batch.ids),
        kl_coefficient=loss.kl_coefficient,
        entropy_coefficient=loss.entropy_coefficient,
    )
    value = reduce_loss(
        terms,
        batch.ids,
        statistics,
        token_weights=loss.token_weights,
        reduction=loss.reduction,
        denominator=loss.denominator,
    )
    if is_detached:
        stats = TokenStats._make(each.detach() for each in stats)
    return _output(batch, loss, value, stats, weights)


def _policy_term(log_probs: Tensor, policy: PolicyGradient, ids: Tensor) -> Tensor:
    """The policy's term per token, with its derivative for autograd."""
    # What stands at tokens in no step may be anything.
    advantages, old = (
        torch.where(ids >= 0, each.detach(), 0.0) for each in (policy.advantages, policy.old_log_probs)
    )
    term, slope = policy_terms(
        log_probs.detach(),
        old,
        advantages,
        clip_low=policy.clip_low,
        clip_high=policy.clip_high,
        dual_clip=policy.dual_clip,
    )
    return term + slope * (log_probs - log_probs.detach())


def _output(batch: Batch, loss: Loss, value: Tensor, stats: TokenStats, weights: Tensor) -> StepKLOutput:
    statistics = step_statistics(stats, batch.trajectory, loss.step_divergence, has_sampled=batch.has_sampled)
    return make_output(
        value,
        stats,
        statistics,
        weights,
        batch.options.backend,
        has_sampled=batch.has_sampled,
        has_reference=batch.has_reference,
    )
