"""Ops that make the gradients of their loss in the forward sweep: kept until the loss gets its own gradient.

Such an op has what is learned as its first arguments, the loss as its first output and their gradients as its
last ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._op_registry import Op, register_gradient
from sod_kernels.native import memory

_SCALE = "scale_gradient(Tensor factor, Tensor learned, Tensor gradient, str function) -> Tensor"


def _scale(factor: Tensor, learned: Tensor, gradient: Tensor, function: str) -> Tensor:
    return gradient * factor


def _fake_scale(factor: Tensor, learned: Tensor, gradient: Tensor, function: str) -> Tensor:
    return torch.empty_like(gradient)


register_gradient(Op(_SCALE, _scale, _fake_scale))


def remember_learned(ctx: Any, arguments: tuple[Any, ...], num_learned: int) -> None:
    """Note how many arguments an op has, and the dtypes of those that are learned.

    Args:
        ctx: Of autograd.
        arguments: What is learned first.
        num_learned: How many those are.
    """
    ctx.num_arguments = len(arguments)
    ctx.dtypes = [None if each is None else each.dtype for each in arguments[:num_learned]]


def gradients_of_all(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Put together gradients of every argument of an op.

    Args:
        ctx: Of `remember_learned`.
        gradients: Of what is learned.

    Returns:
        Those, in the dtypes of what they belong to, and None for everything else.
    """
    learned = (
        gradient.to(dtype) if is_needed else None
        for gradient, dtype, is_needed in zip(gradients, ctx.dtypes, ctx.needs_input_grad, strict=False)
    )
    return (*learned, *(None,) * (ctx.num_arguments - len(ctx.dtypes)))


def keep_gradients(
    ctx: Any,
    inputs: tuple[Any, ...],
    output: tuple[Tensor, ...],
    *,
    num_learned: int,
    learned: Tensor | None,
    function: str,
) -> None:
    """Keep the gradients that a forward sweep has made, for `scale_gradients`.

    Args:
        ctx: Of autograd.
        inputs: Arguments of the op; what is learned comes first.
        output: Loss first; gradients of what is learned last.
        num_learned: How many of either there are.
        learned: A tensor with the graph of something that is learned. A gradient of the gradient would come
            back to it, so it must be at hand to be refused. None if nothing requires a gradient.
        function: Name for messages.
    """
    ctx.function = function
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(learned, *output[-num_learned:])
    # Or else zeros would be made for every output, and some of those are as large as what is learned.
    ctx.set_materialize_grads(False)
    remember_learned(ctx, inputs, num_learned)


def scale_gradients(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Scale them with the gradient of the loss.

    Args:
        ctx: Of `keep_gradients`.
        grad: Of the loss.
        *_: Of the other outputs, which have none.

    Returns:
        Gradients of every argument of the op.
    """
    num_arguments: int = ctx.num_arguments
    if grad is None:
        return (None,) * num_arguments
    learned, *gradients = ctx.saved_tensors
    if not _may_consume(gradients):
        scale = torch.ops.sod_kernels.scale_gradient
        scaled = (scale(grad, learned, gradient, ctx.function) for gradient in gradients)
        return gradients_of_all(ctx, tuple(scaled))
    for gradient in gradients:
        _scale_(gradient, grad)
    return gradients_of_all(ctx, tuple(map(_narrowed, gradients, ctx.dtypes)))


def _narrowed(gradient: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A gradient in the dtype of what it belongs to, if anybody wants it."""
    if dtype in (None, gradient.dtype) or gradient.numel() == 0:
        return gradient
    return memory.empty(gradient.shape, dtype, gradient.device).copy_(gradient)


def _scale_(gradient: Tensor, factor: Tensor) -> None:
    """Multiply in place. A factor of 1 costs no walk, and elsewhere than on the CPU nobody waits for it."""
    device = factor.device.type
    if device == "cpu":
        if not bool(factor == 1.0):
            gradient.mul_(factor)
    elif _dispatch.unavailable_reason("triton", device) is None:
        from sod_kernels.triton.scaling import scale_

        scale_(gradient, factor)
    else:
        gradient.mul_(factor)


def _may_consume(gradients: list[Tensor]) -> bool:
    """Whether nobody can ask for the saved gradients again, so that scaling them needs no second copy.

    That is so in eager mode unless the graph is kept. Compiled code has tensors of a class of its own here.
    """
    is_eager = all(type(gradient) is Tensor for gradient in gradients)
    keeps_graph: Any = torch._C._autograd._get_current_graph_task_keep_graph
    return is_eager and not torch.is_grad_enabled() and not keeps_graph()
