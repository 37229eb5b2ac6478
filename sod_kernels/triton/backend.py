"""The Triton backend: what the dispatcher calls.

Launches per forward: first sweep, a second one where something needs it, one that finishes the rows, a sort
of the step ids and one that sums the steps. Per backward: one. Nothing waits for the device, nothing depends
on values on the device, so both can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels._two_sweeps import in_two_sweeps
from sod_kernels.triton.config import STEP_SUMS_BLOCK, STEP_SUMS_WARPS, SweepConfig
from sod_kernels.triton.launch import (
    availability,
    config_for,
    first_measures,
    float64_arguments,
    gradient_meta,
    launch,
    needs_second_sweep,
    strides,
    sweep_meta,
)
from sod_kernels.triton.log_probs import log_probs_backward, log_probs_forward
from sod_kernels.triton.units import unit_backward, unit_forward
from sod_kernels.types import DivergenceSpec, RowState, TokenGradients, TokenInputs, TokenStats

__all__ = [
    "availability",
    "backward",
    "forward",
    "forward_backward",
    "log_probs_backward",
    "log_probs_forward",
    "unit_backward",
    "unit_forward",
]


def _inverse_temperature(spec: DivergenceSpec) -> tuple[float, ...]:
    return float64_arguments(1.0 / spec.temperature)


def _floor(spec: DivergenceSpec) -> tuple[float, ...]:
    return float64_arguments(0.0 if spec.min_log_prob is None else spec.min_log_prob)


def _sweeps(
    inputs: TokenInputs, spec: DivergenceSpec, meta: dict[str, int], config: SweepConfig
) -> tuple[Tensor, Tensor | None]:
    """Run the sweeps over the logits: the programs' states (N, sides, 3, splits) and sums (N, 3, splits)."""
    from sod_kernels.triton.forward_kernels import first_sweep_kernel, second_sweep_kernel

    student, teacher, reference, step_ids, _ = inputs
    rows, splits = step_ids.numel(), meta["SPLITS"]
    dtype = torch.promote_types(student.dtype, torch.float32)
    sides = 2 if reference is None else 3
    state = torch.empty((rows, sides, 3, splits), dtype=dtype, device=step_ids.device)
    has_floor = spec.min_log_prob is not None
    measure, of_reference = first_measures(
        spec.divergence, has_floor=has_floor, has_reference=reference is not None
    )
    launch(
        first_sweep_kernel,
        rows * splits,
        *(student, teacher, reference, step_ids, state, step_ids.shape[1]),
        *strides(student, teacher, reference),
        *_inverse_temperature(spec),
        MEASURE=measure,
        REFERENCE_MEASURE=of_reference,
        **config.resources,
        **meta,
    )
    if not needs_second_sweep(spec.divergence, has_floor=has_floor):
        return state, None
    partial = torch.empty((rows, 3, splits), dtype=dtype, device=step_ids.device)
    again = reference if has_floor else None
    launch(
        second_sweep_kernel,
        rows * splits,
        *(student, teacher, again, step_ids, state, partial, step_ids.shape[1]),
        *strides(student, teacher, again),
        *_inverse_temperature(spec),
        *float64_arguments(spec.beta),
        *_floor(spec),
        DIVERGENCE=spec.divergence,
        SIDES=sides,
        **config.resources,
        **meta,
    )
    return state, partial


def _step_sums(stats: TokenStats, step_ids: Tensor, *, has_sampled: bool) -> None:
    """Sum the token statistics of each step in a fixed order, into `stats.step_sums`."""
    from sod_kernels.triton.finish_kernels import step_sums_kernel

    # A stable sort costs microseconds and makes one program per step enough: no float atomics, any order of
    # ids.
    ordered, order = torch.sort(step_ids.reshape(-1), stable=True)
    num_steps = stats.step_sums.shape[0]
    edges = torch.searchsorted(
        ordered, torch.arange(num_steps + 1, device=step_ids.device, dtype=step_ids.dtype)
    )
    launch(
        step_sums_kernel,
        num_steps,
        order,
        edges,
        stats.token_kl,
        stats.student_log_probs if has_sampled else None,
        stats.teacher_log_probs if has_sampled else None,
        stats.student_entropy,
        stats.step_sums,
        BLOCK=STEP_SUMS_BLOCK,
        num_warps=STEP_SUMS_WARPS,
    )


def _new_stats(inputs: TokenInputs, num_steps: int) -> TokenStats:
    step_ids = inputs.step_ids
    dtype = torch.promote_types(inputs.student_logits.dtype, torch.float32)

    def tokens(is_given: bool = True) -> Tensor:
        shape = step_ids.shape if is_given else (0,)
        return torch.empty(shape, dtype=dtype, device=step_ids.device)

    has_sampled = inputs.sampled_ids is not None
    return TokenStats(
        token_kl=tokens(),
        token_reference_kl=tokens(inputs.reference_logits is not None),
        student_log_probs=tokens(has_sampled),
        teacher_log_probs=tokens(has_sampled),
        student_entropy=tokens(),
        row_state=torch.empty((*step_ids.shape, len(RowState)), dtype=torch.float64, device=step_ids.device),
        step_sums=torch.empty((num_steps, 5), dtype=torch.float64, device=step_ids.device),
    )


def forward(
    inputs: TokenInputs, num_steps: int, spec: DivergenceSpec, *, config: SweepConfig | None = None
) -> TokenStats:
    """Compute all per-token and per-step statistics.

    Args:
        inputs: Logits, step ids and sampled ids.
        num_steps: Number of steps S; ids lie in [0, S).
        spec: What to compute.
        config: Launch configuration instead of the table's, for tuning and tests.

    Returns:
        The statistics; see `TokenStats`.

    Raises:
        ValueError: If no launch configuration is listed for the device.
    """
    from sod_kernels.triton.finish_kernels import finish_rows_kernel

    student, teacher, reference, step_ids, sampled_ids = inputs
    config = config or config_for(student).forward
    meta = sweep_meta(config, student.dtype, spec.vocab_size)
    stats = _new_stats(inputs, num_steps)
    # Triton launches on the current device.
    with torch.cuda.device_of(student):
        state, partial = _sweeps(inputs, spec, meta, config)
        launch(
            finish_rows_kernel,
            step_ids.numel(),
            *(student, teacher, step_ids, sampled_ids, state, partial, stats.token_kl),
            None if reference is None else stats.token_reference_kl,
            *(stats.student_log_probs, stats.teacher_log_probs, stats.student_entropy, stats.row_state),
            step_ids.shape[1],
            *strides(student, teacher),
            *_inverse_temperature(spec),
            *float64_arguments(spec.beta),
            *_floor(spec),
            DIVERGENCE=spec.divergence,
            HAS_FLOOR=spec.min_log_prob is not None,
            SPLITS=meta["SPLITS"],
            num_warps=1,
        )
        _step_sums(stats, step_ids, has_sampled=sampled_ids is not None)
    return stats


def backward(
    upstream: TokenGradients,
    inputs: TokenInputs,
    row_state: Tensor,
    spec: DivergenceSpec,
    *,
    out: Tensor | None = None,
    config: SweepConfig | None = None,
) -> Tensor:
    """Compute the gradient with respect to the student logits in one sweep.

    Args:
        upstream: Gradients of the differentiable outputs.
        inputs: As in the forward.
        row_state: (B, T, 7) from the forward.
        spec: As in the forward.
        out: Takes the gradient, contiguous; may be the student's logits. None for a fresh tensor.
        config: Launch configuration instead of the table's, for tuning and tests.

    Returns:
        (B, T, V) contiguous, dtype of the student's logits; 0 outside steps and beyond the valid columns.

    Raises:
        ValueError: If no launch configuration is listed for the device.
    """
    from sod_kernels.triton.backward_kernels import backward_kernel

    student, teacher, reference, step_ids, sampled_ids = inputs
    config = config or config_for(student).backward
    meta = gradient_meta(config, spec.vocab_size, student.shape[2])
    grad = torch.empty(student.shape, dtype=student.dtype, device=student.device) if out is None else out
    with torch.cuda.device_of(student):
        launch(
            backward_kernel,
            step_ids.numel() * meta["SPLITS"],
            *(grad, student, teacher, reference, step_ids, sampled_ids, row_state, upstream.token_kl),
            None if reference is None else upstream.token_reference_kl,
            None if sampled_ids is None else upstream.student_log_probs,
            upstream.student_entropy,
            step_ids.shape[1],
            *strides(student, teacher, reference),
            *_inverse_temperature(spec),
            *float64_arguments(spec.beta),
            *_floor(spec),
            DIVERGENCE=spec.divergence,
            HAS_FLOOR=spec.min_log_prob is not None,
            **config.resources,
            **meta,
        )
    return grad


forward_backward = in_two_sweeps(forward, backward)
