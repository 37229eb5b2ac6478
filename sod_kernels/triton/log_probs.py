"""The log-prob sweeps of the Triton backend: the student alone, K ids per row."""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels.triton.config import LOG_PROB_BLOCK, LOG_PROB_WARPS, SweepConfig
from sod_kernels.triton.launch import (
    config_for,
    float64_arguments,
    gradient_meta,
    launch,
    strides,
    sweep_meta,
)
from sod_kernels.types import LogProbGradients, LogProbInputs, LogProbStats


def log_probs_forward(inputs: LogProbInputs, *, config: SweepConfig | None = None) -> LogProbStats:
    """Compute the log-probabilities of K ids per row and the entropy in one sweep.

    Args:
        inputs: Logits, step ids and the ids to look up.
        config: Launch configuration instead of the table's, for tuning and tests.

    Returns:
        Log-probabilities, entropy and the (B, T, 2) row state.

    Raises:
        ValueError: If no launch configuration is listed for the device.
    """
    from sod_kernels.triton.forward_kernels import first_sweep_kernel
    from sod_kernels.triton.log_prob_kernels import finish_log_probs_kernel

    student, step_ids, ids, temperature, vocab_size = inputs
    config = config or config_for(student).forward
    meta = sweep_meta(config, student.dtype, vocab_size)
    rows, device = step_ids.numel(), student.device
    dtype = torch.promote_types(student.dtype, torch.float32)
    scalars = float64_arguments(1.0 / temperature)
    state = torch.empty((rows, 1, 3, meta["SPLITS"]), dtype=dtype, device=device)
    log_probs = torch.empty(ids.shape, dtype=dtype, device=device)
    entropy = torch.empty(step_ids.shape, dtype=dtype, device=device)
    row_state = torch.empty((*step_ids.shape, 2), dtype=torch.float64, device=device)
    with torch.cuda.device_of(student):
        launch(
            first_sweep_kernel,
            rows * meta["SPLITS"],
            *(student, None, None, step_ids, state, step_ids.shape[1]),
            *strides(student, None, None),
            *scalars,
            MEASURE="none",
            REFERENCE_MEASURE="none",
            **config.resources,
            **meta,
        )
        launch(
            finish_log_probs_kernel,
            rows,
            *(student, step_ids, ids, state, log_probs, entropy, row_state, step_ids.shape[1], ids.shape[2]),
            *strides(student),
            *scalars,
            BLOCK=LOG_PROB_BLOCK,
            SPLITS=meta["SPLITS"],
            num_warps=LOG_PROB_WARPS,
        )
    return LogProbStats(log_probs, entropy, row_state)


def log_probs_backward(
    upstream: LogProbGradients,
    inputs: LogProbInputs,
    row_state: Tensor,
    *,
    out: Tensor | None = None,
    config: SweepConfig | None = None,
) -> Tensor:
    """Compute the gradient of the student logits in one sweep.

    Args:
        upstream: Gradients of the log-probabilities and the entropy.
        inputs: As in the forward.
        row_state: (B, T, 2) from the forward.
        out: Takes the gradient, contiguous; may be the student's logits. None for a fresh tensor.
        config: Launch configuration instead of the table's, for tuning and tests.

    Returns:
        (B, T, V) contiguous, dtype of the student's logits; 0 outside steps and beyond the valid columns.

    Raises:
        ValueError: If no launch configuration is listed for the device.
    """
    from sod_kernels.triton.log_prob_kernels import store_at_ids_kernel

    student, step_ids, ids, _, _ = inputs
    config = config or config_for(student).backward
    grad = torch.empty(student.shape, dtype=student.dtype, device=student.device) if out is None else out
    with torch.cuda.device_of(student):
        # Before the sweep, which may write over the logits that this reads.
        grad_at_ids, grad_sum = _gradient_at_ids(upstream, inputs, row_state)
        _sweep(grad, LogProbGradients(grad_sum, upstream.student_entropy), inputs, row_state, config)
        launch(
            store_at_ids_kernel,
            step_ids.numel(),
            *(grad, step_ids, ids, grad_at_ids, ids.shape[2]),
            WIDTH=student.shape[2],
            BLOCK=LOG_PROB_BLOCK,
            num_warps=LOG_PROB_WARPS,
        )
    return grad


def _gradient_at_ids(
    upstream: LogProbGradients, inputs: LogProbInputs, row_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the whole gradient at each row's ids, (B, T, K), and the sum of the upstream ones, (B, T)."""
    from sod_kernels.triton.log_prob_kernels import gradient_at_ids_kernel

    student, step_ids, ids, temperature, _ = inputs
    grad_at_ids = torch.empty_like(upstream.log_probs)
    grad_sum = torch.empty_like(upstream.student_entropy)
    launch(
        gradient_at_ids_kernel,
        step_ids.numel(),
        *(student, step_ids, ids, row_state, *upstream, grad_at_ids, grad_sum),
        *(step_ids.shape[1], ids.shape[2]),
        *strides(student),
        *float64_arguments(1.0 / temperature),
        BLOCK=LOG_PROB_BLOCK,
        num_warps=LOG_PROB_WARPS,
    )
    return grad_at_ids, grad_sum


def _sweep(
    grad: Tensor, upstream: LogProbGradients, inputs: LogProbInputs, row_state: Tensor, config: SweepConfig
) -> None:
    """Write the gradient without the ids' own terms; `upstream.log_probs` is (B, T), summed over the ids."""
    from sod_kernels.triton.backward_kernels import backward_kernel

    student, step_ids, _, temperature, vocab_size = inputs
    meta = gradient_meta(config, vocab_size, student.shape[2])
    launch(
        backward_kernel,
        step_ids.numel() * meta["SPLITS"],
        *(grad, student, None, None, step_ids, None, row_state, None, None, *upstream),
        step_ids.shape[1],
        *strides(student, None, None),
        *float64_arguments(1.0 / temperature, 0.0, 0.0),
        DIVERGENCE="none",
        HAS_FLOOR=False,
        **config.resources,
        **meta,
    )
