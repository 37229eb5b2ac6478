"""Checks that any backend must pass, whatever it is written in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from sod_kernels.testing.cases import StepKLCase
from sod_kernels.testing.truth import Truth, plain_torch, truth
from sod_kernels.types import Backend, RowState, TokenStats

_ROUNDING_UNITS = {torch.float64: 64.0, torch.float32: 8.0, torch.bfloat16: 2.0, torch.float16: 2.0}
_TOKEN_FIELDS = (
    "token_kl",
    "token_reference_kl",
    "student_log_probs",
    "teacher_log_probs",
    "student_entropy",
)
_SAMPLED_FIELDS = ("student_log_probs", "teacher_log_probs")


def require(is_true: bool, message: str) -> None:
    """Raise if a promise does not hold.

    Args:
        is_true: Whether it holds.
        message: What was promised, and what was found.

    Raises:
        AssertionError: If it does not.
    """
    if not is_true:
        raise AssertionError(message)


def assert_error_relative(
    name: str, ours: Tensor, exact: Tensor, plain: Tensor, *, dtype: torch.dtype
) -> None:
    """Check that our worst error is at most twice plain torch's plus a few units of rounding.

    Entries that are not finite must sit at the same places with the same values as in the truth.

    Args:
        name: What is compared, for the message.
        ours: Result under test, any shape and floating dtype.
        exact: The truth in float64, same shape.
        plain: Plain torch's result, same shape.
        dtype: Its rounding unit, times (1 + the largest true value), is the additive tolerance.

    Raises:
        AssertionError: If the result is worse than allowed; says by how much and where.
    """
    require(ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)}, wanted {tuple(exact.shape)}.")
    if exact.numel() == 0:
        return
    ours, plain = ours.double(), plain.double()
    finite = exact.isfinite()
    odd = ~torch.where(finite, ours.isfinite(), (ours == exact) | (ours.isnan() & exact.isnan()))
    if bool(odd.any()):
        where = tuple(odd.nonzero()[0].tolist())
        raise AssertionError(f"{name}: {float(ours[where])} at {where}, the truth is {float(exact[where])}.")
    error = torch.where(finite, ours - exact, 0.0).abs()
    plain_error = torch.where(finite & plain.isfinite(), plain - exact, 0.0).abs().max()
    scale = 1.0 + torch.where(finite, exact, 0.0).abs().max()
    allowed = 2.0 * plain_error + _ROUNDING_UNITS[dtype] * torch.finfo(dtype).eps * scale
    where = tuple((error == error.max()).nonzero()[0].tolist())
    require(
        bool(error.max() <= allowed),
        f"{name}: error {float(error.max()):.3g} at {where}, allowed {float(allowed):.3g} "
        f"(plain torch in {dtype}: {float(plain_error):.3g}).",
    )


@contextmanager
def nan_filled_empty() -> Iterator[None]:
    """Fill `torch.empty` with NaN (integers: the largest) in this context, so that unwritten memory shows."""
    memory = cast(Any, torch.utils.deterministic)
    before = (torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]


def _run(backend: Backend, case: StepKLCase) -> tuple[TokenStats, Tensor]:
    with nan_filled_empty():
        stats = backend.forward(case.inputs, case.num_steps, case.spec)
        grad = backend.backward(case.upstream, case.inputs, stats.row_state, case.spec)
    return stats, grad


def is_same(first: Tensor, second: Tensor) -> bool:
    """Compare bit by bit, any two NaNs counting as one.

    Args:
        first: Any tensor.
        second: Any tensor.

    Returns:
        Whether shapes and values are the same.
    """
    return first.shape == second.shape and bool(((first == second) | (first.isnan() & second.isnan())).all())


def _absent_fields(case: StepKLCase) -> tuple[str, ...]:
    """Outputs of shape (0,), as the input that they depend on was not given."""
    no_reference = () if case.reference_logits is not None else ("token_reference_kl",)
    return no_reference + (() if case.sampled_ids is not None else _SAMPLED_FIELDS)


def _check_form(stats: TokenStats, grad: Tensor, case: StepKLCase) -> None:
    """Shapes, dtypes, layout, aliasing, exact zeros outside steps and in padding columns."""
    student = case.student_logits
    out_dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    inactive = case.step_ids < 0
    for name in _TOKEN_FIELDS:
        value = getattr(stats, name)
        is_absent = name in _absent_fields(case)
        wanted = (0,) if is_absent else tuple(case.step_ids.shape)
        require(tuple(value.shape) == wanted, f"{name}: shape {tuple(value.shape)}, wanted {wanted}.")
        require(value.dtype == out_dtype, f"{name}: dtype {value.dtype}, wanted {out_dtype}.")
        require(value.is_contiguous(), f"{name}: not contiguous.")
        if not is_absent:
            require(bool((value[inactive] == 0).all()), f"{name}: not exactly 0 at rows in no step.")
    state, shape = stats.row_state, (*case.step_ids.shape, len(RowState))
    require(state.shape == shape, f"row_state: shape {tuple(state.shape)}, wanted {shape}.")
    require(state.dtype == torch.float64, f"row_state: dtype {state.dtype}, wanted float64.")
    require(bool((state[inactive] == 0).all()), "row_state: not exactly 0 at rows in no step.")
    sums = stats.step_sums
    require(tuple(sums.shape) == (case.num_steps, 5), f"step_sums: shape {tuple(sums.shape)}.")
    require(sums.dtype == torch.float64, f"step_sums: dtype {sums.dtype}, wanted float64.")
    require(
        grad.shape == student.shape, f"gradient: shape {tuple(grad.shape)}, wanted {tuple(student.shape)}."
    )
    require(grad.dtype == student.dtype, f"gradient: dtype {grad.dtype}, wanted {student.dtype}.")
    require(grad.is_contiguous(), "gradient: not contiguous.")
    require(bool((grad[inactive] == 0).all()), "gradient: not exactly 0 at rows in no step.")
    require(
        bool((grad[..., case.spec.vocab_size :] == 0).all()), "gradient: not exactly 0 in padding columns."
    )
    inputs = (*case.inputs, *case.upstream)
    outputs = [tensor.untyped_storage().data_ptr() for tensor in (*stats, grad) if tensor.numel()]
    taken = {each.untyped_storage().data_ptr() for each in inputs if each is not None and each.numel()}
    require(len(set(outputs)) == len(outputs), "outputs share memory with each other.")
    require(taken.isdisjoint(outputs), "an output shares memory with an input.")


def check_accuracy(stats: TokenStats, grad: Tensor, case: StepKLCase, exact: Truth, plain: Truth) -> None:
    """Check every token output, the row state and the gradient.

    Args:
        stats: Of the forward sweep under test.
        grad: Of the backward sweep under test.
        case: That was run.
        exact: The truth.
        plain: The yardstick.

    Raises:
        AssertionError: At the first that is off.
    """
    dtype = case.student_logits.dtype
    is_number = ~(exact.token_kl.isnan() | exact.token_reference_kl.isnan())
    is_finite = is_number & exact.token_kl.isfinite()

    def compare(name: str, ours: Tensor, true: Tensor, torch_value: Tensor, rows: Tensor) -> None:
        picked = (torch.where(rows, value, 0.0) for value in (ours, true, torch_value))
        assert_error_relative(f"{case.name}: {name}", *picked, dtype=dtype)

    for name in _TOKEN_FIELDS:
        if name in _absent_fields(case):
            continue
        # A row without a distribution promises nothing but a NaN divergence.
        rows = torch.ones_like(is_number) if name in ("token_kl", "token_reference_kl") else is_number
        compare(name, getattr(stats, name), getattr(exact, name), getattr(plain, name), rows)
    for column in RowState:
        ours, true, torch_value = (each.row_state[..., column] for each in (stats, exact, plain))
        rows = is_finite if column is RowState.AUX else is_number
        compare(f"row_state {column.name}", ours, true, torch_value, rows)
    compare("gradient", grad, exact.grad_student_logits, plain.grad_student_logits, is_number[..., None])


def check_step_sums(stats: TokenStats, case: StepKLCase) -> None:
    """Check that the sums are those of the reported token values, accumulated in float64.

    Args:
        stats: Of the forward sweep under test.
        case: That was run.

    Raises:
        AssertionError: If they are not.
    """
    active = case.step_ids >= 0
    zeros = torch.zeros_like(stats.token_kl)
    has_sampled = case.sampled_ids is not None
    gap = (stats.student_log_probs - stats.teacher_log_probs).abs() if has_sampled else zeros
    nll = -stats.student_log_probs if has_sampled else zeros
    columns = torch.stack([torch.ones_like(zeros), stats.token_kl, gap, nll, stats.student_entropy], -1)
    wanted = torch.zeros(case.num_steps, 5, dtype=torch.float64)
    for step, row in zip(case.step_ids[active].tolist(), columns[active].double().cpu(), strict=True):
        wanted[step] += row
    torch.testing.assert_close(
        stats.step_sums.cpu(), wanted, rtol=1e-6, atol=1e-9, equal_nan=True, msg=lambda m: f"step_sums: {m}"
    )


def check_backend_forward_backward(backend: Backend, case: StepKLCase) -> None:
    """Check one backend on one case.

    Accuracy against the truth, exact zeros outside steps and in padding, no unwritten memory, no aliasing,
    step sums, bitwise repeatability, inputs left alone, the gradient in place of the logits.

    Args:
        backend: A module (or object) with the backend interface.
        case: From `make_case`.

    Raises:
        AssertionError: At the first promise that does not hold.
    """
    before = case.clone_tensors()
    stats, grad = _run(backend, case)
    again, grad_again = _run(backend, case)
    for first, second in zip((*stats, grad), (*again, grad_again), strict=True):
        require(is_same(first, second), f"{case.name}: two runs differ.")
    for first, second in zip(before, case.clone_tensors(), strict=True):
        require(is_same(first, second), f"{case.name}: an input was changed.")
    _check_form(stats, grad, case)
    check_accuracy(stats, grad, case, truth(case), plain_torch(case))
    check_step_sums(stats, case)
    in_place = case.student_logits.clone(memory_format=torch.contiguous_format)
    inputs = case.inputs._replace(student_logits=in_place)
    backend.backward(case.upstream, inputs, stats.row_state, case.spec, out=in_place)
    require(is_same(in_place, grad), f"{case.name}: the gradient written over the logits differs.")


def check_backend_single_visit(backend: Backend, case: StepKLCase, *, is_bitwise: bool = True) -> None:
    """Check that both sweeps in one call give what two calls do, in fresh memory and over the logits.

    Args:
        backend: A module (or object) with the backend interface.
        case: From `make_case`.
        is_bitwise: Whether they promise the bits of two calls; else the accuracy of the truth is asked for,
            and the same bits twice.

    Raises:
        AssertionError: If anything is off, or an input was changed.
    """
    case = replace(
        case,
        grad_student_log_probs=torch.zeros_like(case.grad_student_log_probs),
        grad_student_entropy=torch.zeros_like(case.grad_student_entropy),
    )
    before, upstream = case.clone_tensors(), case.upstream
    if is_bitwise:
        stats, grad = _run(backend, case)
    else:
        stats, grad = backend.forward_backward(upstream, case.inputs, case.num_steps, case.spec)
        _check_form(stats, grad, case)
        check_accuracy(stats, grad, case, truth(case), plain_torch(case))
        check_step_sums(stats, case)
    in_place = case.student_logits.clone(memory_format=torch.contiguous_format)
    for out in (None, in_place):
        inputs = case.inputs if out is None else case.inputs._replace(student_logits=out)
        with nan_filled_empty():
            ours, our_grad = backend.forward_backward(upstream, inputs, case.num_steps, case.spec, out=out)
        for first, second in zip((*stats, grad), (*ours, our_grad), strict=True):
            require(is_same(first, second), f"{case.name}: one call gives other bits than before.")
    for first, second in zip(before, case.clone_tensors(), strict=True):
        require(is_same(first, second), f"{case.name}: an input was changed.")


def check_issue_targets(backend: Backend, case: StepKLCase) -> None:
    """Check the promised absolute accuracy in float32: token_kl to 5e-4 for KL >= 1e-3, gradient to 2e-5.

    Args:
        backend: A module (or object) with the backend interface.
        case: A case without infinite or NaN rows, float32 logits.

    Raises:
        AssertionError: If a figure is missed.
    """
    stats, grad = _run(backend, case)
    exact = truth(case)
    counted = exact.token_kl >= 1e-3
    relative = ((stats.token_kl.double() - exact.token_kl).abs() / exact.token_kl)[counted]
    if relative.numel():
        require(float(relative.max()) <= 5e-4, f"{case.name}: token_kl off by {float(relative.max()):.3g}.")
    norm = exact.grad_student_logits.norm()
    off = float((grad.double() - exact.grad_student_logits).norm() / norm.clamp(min=1e-30))
    require(off <= 2e-5, f"{case.name}: gradient off by {off:.3g} of its norm.")
