"""Checks of a backend's log-prob sweeps against autograd in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels.testing.cases import StepKLCase
from sod_kernels.testing.checks import assert_error_relative, is_same, nan_filled_empty, require
from sod_kernels.types import Backend, LogProbGradients, LogProbInputs, LogProbStats

_NUM_IDS = 5


def make_log_prob_inputs(case: StepKLCase) -> tuple[LogProbInputs, LogProbGradients]:
    """Ask for five ids per row of a case: one twice, one absent, anything at rows in no step.

    Args:
        case: Gives logits, step ids, temperature and valid columns.

    Returns:
        What the forward and the backward sweep take.
    """
    generator = torch.Generator().manual_seed(1)
    shape, device = case.step_ids.shape, case.step_ids.device
    ids = torch.randint(case.spec.vocab_size, (*shape, _NUM_IDS), generator=generator).to(device)
    ids[..., 1] = ids[..., 0]
    ids[..., 3] = -1
    ids = torch.where(case.step_ids[..., None] >= 0, ids, 1 << 40)
    dtype = torch.promote_types(case.student_logits.dtype, torch.float32)
    upstream = torch.randn((*shape, _NUM_IDS + 1), generator=generator, dtype=torch.float64)
    upstream = upstream.to(device, dtype)
    inputs = LogProbInputs(
        case.student_logits, case.step_ids, ids, case.spec.temperature, case.spec.vocab_size
    )
    return inputs, LogProbGradients(upstream[..., :-1].contiguous(), upstream[..., -1].contiguous())


def _autograd(
    inputs: LogProbInputs, upstream: LogProbGradients, dtype: torch.dtype
) -> tuple[LogProbStats, Tensor]:
    active = inputs.step_ids >= 0
    student = inputs.student_logits.detach().to(dtype, copy=True).contiguous().requires_grad_()
    valid = torch.where(active[..., None], student[..., : inputs.vocab_size], 0.0) / inputs.temperature
    log_p = valid.log_softmax(-1)
    is_there = active[..., None] & (inputs.ids >= 0)
    picked = log_p.gather(-1, torch.where(is_there, inputs.ids, 0))
    finite = torch.where(log_p == -torch.inf, 0.0, log_p)
    entropy = -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * finite).sum(-1)
    terms = torch.where(is_there, upstream.log_probs.to(dtype) * picked, 0.0).sum()
    terms = terms + torch.where(active, upstream.student_entropy.to(dtype) * entropy, 0.0).sum()
    (grad,) = torch.autograd.grad(terms, student)
    log_probs = torch.where(is_there, picked.detach(), 0.0)
    entropy = torch.where(active, entropy.detach(), 0.0)
    lse = torch.where(active, valid.detach().logsumexp(-1), 0.0)
    return LogProbStats(log_probs, entropy, torch.stack((lse, entropy), -1)), grad


def check_backend_log_probs(backend: Backend, case: StepKLCase) -> None:
    """Check the log-prob sweeps of one backend on one case.

    Accuracy against float64, exact zeros outside steps, at absent ids and in padding columns, no unwritten
    memory, bitwise repeatability, the gradient in place of the logits.

    Args:
        backend: A module (or object) with the backend interface.
        case: From `make_case`.

    Raises:
        AssertionError: At the first promise that does not hold.
    """
    inputs, upstream = make_log_prob_inputs(case)
    results = []
    for _ in range(2):
        with nan_filled_empty():
            stats = backend.log_probs_forward(inputs)
            results.append((stats, backend.log_probs_backward(upstream, inputs, stats.row_state)))
    (stats, grad), (again, grad_again) = results
    for first, second in zip((*stats, grad), (*again, grad_again), strict=True):
        require(is_same(first, second), f"{case.name}: two runs differ.")
    check_log_prob_results(stats, grad, case)
    in_place = case.student_logits.clone(memory_format=torch.contiguous_format)
    inputs = inputs._replace(student_logits=in_place)
    backend.log_probs_backward(upstream, inputs, stats.row_state, out=in_place)
    require(is_same(in_place, grad), f"{case.name}: the gradient written over the logits differs.")


def check_log_prob_results(stats: LogProbStats, grad: Tensor, case: StepKLCase) -> None:
    """Check what log-prob sweeps gave for `make_log_prob_inputs` against autograd in float64.

    Args:
        stats: Of the forward sweep over whole rows.
        grad: Of the backward sweep.
        case: From `make_case`.

    Raises:
        AssertionError: At the first output that is off.
    """
    inputs, upstream = make_log_prob_inputs(case)
    active = case.step_ids >= 0
    for name, value in (*stats._asdict().items(), ("gradient", grad)):
        require(bool((value[~active] == 0).all()), f"{case.name}: {name} not exactly 0 in no step.")
    require(bool((stats.log_probs[inputs.ids < 0] == 0).all()), f"{case.name}: absent ids are not 0.")
    require(bool((grad[..., inputs.vocab_size :] == 0).all()), f"{case.name}: padding columns are not 0.")
    dtype = case.student_logits.dtype
    exact, exact_grad = _autograd(inputs, upstream, torch.float64)
    plain, plain_grad = _autograd(inputs, upstream, dtype)
    is_number = ~exact.student_entropy.isnan()
    pairs = [
        (name, getattr(stats, name), getattr(exact, name), getattr(plain, name)) for name in stats._fields
    ]
    for name, *values in (*pairs, ("gradient", grad, exact_grad, plain_grad)):
        rows = is_number if values[0].dim() == 2 else is_number[..., None]
        picked = (torch.where(rows, value, 0.0) for value in values)
        assert_error_relative(f"{case.name}: {name}", *picked, dtype=dtype)
