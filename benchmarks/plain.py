"""The plain formulas in torch: eager, and compiled for static and for dynamic shapes."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestant import TORCH, Contestant, Loss, float_logits
from benchmarks.inputs import HiddenInputs, LogitsInputs, TopKInputs


def plain_step_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean reverse KL as anybody would write it; 16-bit logits are upcast, without which it is wrong."""
    log_p = student.float().log_softmax(-1)
    log_q = teacher.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def plain_linear_step_kl(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
    """Project both sides in their dtype, then the same."""
    return plain_step_kl(student @ head.t(), teacher @ teacher_head.t())


def plain_topk_step_kl(student: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """Mean reverse KL over the teacher's K tokens and a bucket of all others."""
    log_p = student.float().log_softmax(-1).gather(-1, ids)
    rest_p = torch.log1p(-log_p.exp().sum(-1).clamp(max=1 - 1e-6))
    rest_q = torch.log1p(-log_q.exp().sum(-1).clamp(max=1 - 1e-6))
    listed = (log_p.exp() * (log_p - log_q)).sum(-1)
    return (listed + rest_p.exp() * (rest_p - rest_q)).mean()


def _logits_arguments(inputs: LogitsInputs) -> tuple[Tensor, ...]:
    return inputs.student, inputs.teacher


def _hidden_arguments(inputs: HiddenInputs) -> tuple[Tensor, ...]:
    return inputs.student, inputs.student_head, inputs.teacher, inputs.teacher_head


def _topk_arguments(inputs: TopKInputs) -> tuple[Tensor, ...]:
    return inputs.student, inputs.teacher_log_probs, inputs.teacher_ids


_FORMULAS: dict[str, tuple[Callable[..., Tensor], Callable[[Any], tuple[Tensor, ...]], int]] = {
    # The last number: (N, V) float32 tensors that eager torch holds at once with its backward, rounded up.
    "step_kl": (plain_step_kl, _logits_arguments, 7),
    "linear_step_kl": (plain_linear_step_kl, _hidden_arguments, 9),
    "topk_step_kl": (plain_topk_step_kl, _topk_arguments, 5),
}


def with_own_code(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Copy a function of this module down to its code.

    torch keeps what it compiled with the code, so that of two compilations of one function each might be
    answered by the other's.
    """
    return FunctionType(function.__code__.replace(), globals())


def plain_contestants(op: str) -> list[Contestant]:
    """List torch eager and both kinds of torch.compile for an op.

    Args:
        op: "step_kl", "linear_step_kl" or "topk_step_kl".

    Returns:
        Contestants, eager first.
    """
    formula, arguments, copies = _FORMULAS[op]

    def bind(function: Callable[..., Tensor]) -> Callable[[Any], Loss]:
        def prepare(inputs: Any) -> Loss:
            values = arguments(inputs)
            return lambda: function(*values)

        return prepare

    def compiled(*, is_dynamic: bool) -> Callable[[Any], Loss]:
        return bind(torch.compile(with_own_code(formula), dynamic=is_dynamic))

    # Fused, at least three of them are never made.
    needed = float_logits(copies - 3)
    return [
        Contestant(name="torch eager", kind=TORCH, prepare=bind(formula), needed_bytes=float_logits(copies)),
        Contestant(
            name="torch.compile",
            kind=TORCH,
            prepare=compiled(is_dynamic=False),
            is_compiled=True,
            needed_bytes=needed,
        ),
        Contestant(
            name="torch.compile dynamic",
            kind=TORCH,
            prepare=compiled(is_dynamic=True),
            is_compiled=True,
            needed_bytes=needed,
        ),
    ]
