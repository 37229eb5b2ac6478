"""The custom op of a single sweep over logits: the loss, and its gradient while each row is at hand.

That needs the factor of each token's divergence in the loss before the sweep, and makes the loss alone
differentiable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._autograd import INPUTS, NUM_INPUTS, OPTIONS, make_spec, new_outputs
from sod_kernels._kept_gradients import keep_gradients, scale_gradients
from sod_kernels._op_registry import Op, register
from sod_kernels._reduction import weigh
from sod_kernels.types import TokenGradients, TokenInputs, TokenStats

_LOSS = (
    f"step_kl_loss({INPUTS}, Tensor factors, Tensor? reference_factors, Tensor divisor, Tensor learned, "
    f"bool wants_gradient, SymInt num_steps, {OPTIONS}) -> (Tensor loss, Tensor token_kl, "
    "Tensor token_reference_kl, Tensor student_log_probs, Tensor teacher_log_probs, Tensor student_entropy, "
    "Tensor step_sums, Tensor gradient)"
)


class Parts(NamedTuple):
    """What makes a loss of divergences: (sum of factor times divergence) / divisor.

    Attributes:
        factors: (B, T) of the divergence, in the dtype of the token outputs.
        reference_factors: (B, T) of the KL from the reference; None without.
        divisor: Scalar.
        learned: Any tensor with the graph of the student's logits, in whose place it is kept: they would stay
            in memory until the backward pass.
        wants_gradient: Whether the gradient is made.
    """

    factors: Tensor
    reference_factors: Tensor | None
    divisor: Tensor
    learned: Tensor
    wants_gradient: bool


class SingleSweepOutputs(NamedTuple):
    """Outputs of the op: as of the forward sweep, loss and gradient; (0,) if that is not wanted."""

    loss: Tensor
    token_kl: Tensor
    token_reference_kl: Tensor
    student_log_probs: Tensor
    teacher_log_probs: Tensor
    student_entropy: Tensor
    step_sums: Tensor
    gradient: Tensor


_NUM_BOTH = NUM_INPUTS + len(Parts._fields)


def _outputs(loss: Tensor, stats: TokenStats, gradient: Tensor) -> SingleSweepOutputs:
    *tokens, _, step_sums = stats
    return SingleSweepOutputs._make((loss, *tokens, step_sums, gradient))


def _split(arguments: tuple[Any, ...]) -> tuple[TokenInputs, Parts, tuple[Any, ...]]:
    inputs, parts = TokenInputs(*arguments[:NUM_INPUTS]), Parts(*arguments[NUM_INPUTS:_NUM_BOTH])
    return inputs, parts, arguments[_NUM_BOTH:]


def _loss(stats: TokenStats, parts: Parts) -> Tensor:
    weighted = weigh(stats.token_kl, parts.factors)
    if parts.reference_factors is not None:
        weighted = weighted + weigh(stats.token_reference_kl, parts.reference_factors)
    return weighted.sum() / parts.divisor


def _upstream(inputs: TokenInputs, parts: Parts) -> TokenGradients:
    """Gradients of the loss in the outputs of the forward sweep."""
    share = 1.0 / parts.divisor
    factors, second = parts.factors, parts.reference_factors
    return TokenGradients(
        token_kl=factors * share,
        token_reference_kl=factors.new_zeros(0) if second is None else second * share,
        student_log_probs=factors.new_zeros(factors.shape if inputs.sampled_ids is not None else (0,)),
        student_entropy=torch.zeros_like(factors),
    )


def _run(*arguments: Any) -> SingleSweepOutputs:
    inputs, parts, (num_steps, *options, name) = _split(arguments)
    student, spec = inputs.student_logits, make_spec(options)
    gradient = student.new_empty(0)
    if inputs.step_ids.numel() == 0 or num_steps == 0:
        stats = new_outputs(inputs, num_steps)
        if parts.wants_gradient:
            gradient = student.new_zeros(student.shape)
    elif parts.wants_gradient:
        backend = _dispatch.load(name)
        stats, gradient = backend.forward_backward(_upstream(inputs, parts), inputs, num_steps, spec)
    else:
        stats = _dispatch.load(name).forward(inputs, num_steps, spec)
    return _outputs(_loss(stats, parts), stats, gradient)


def _fake(*arguments: Any) -> SingleSweepOutputs:
    inputs, parts, (num_steps, *_) = _split(arguments)
    stats, student = new_outputs(inputs, num_steps), inputs.student_logits
    gradient = student.new_empty(student.shape if parts.wants_gradient else (0,))
    return _outputs(stats.token_kl.new_empty(()), stats, gradient)


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, parts, _ = _split(inputs)
    keep_gradients(ctx, inputs, output, num_learned=1, learned=parts.learned, function="step_kl")


register(Op(_LOSS, _run, _fake), scale_gradients, _set_up)

step_kl_loss = torch.ops.sod_kernels.step_kl_loss
