"""The unit sweeps of the Triton backend: two vocabularies, gathered columns.

Launches per forward: one sweep, a second one for the Jensen-Shannon divergence, one that finishes the units.
Per backward: one over whole rows, one over the shared columns, two of torch for the tokens of spans.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sod_kernels.triton.config import UNIT_VECTOR, SweepConfig, num_splits
from sod_kernels.triton.launch import config_for, float64_arguments, gradient_meta, launch
from sod_kernels.types import DivergenceSpec, RowState
from sod_kernels.unit_types import UnitGradients, UnitInputs, UnitStats


def unit_meta(config: SweepConfig, num_columns: int) -> dict[str, int]:
    """Name the constexpr arguments that say how a forward sweep walks over gathered columns.

    Args:
        config: Configuration of the sweep.
        num_columns: Length of a list.

    Returns:
        Keyword arguments; SPLITS is the number of programs per unit.
    """
    # Each gathered entry has an address of its own, so that half as many are in flight.
    config = replace(config, block_size=config.block_size // 2)
    return {
        "VOCAB": num_columns,
        "BLOCK": config.block_size,
        "LANES": config.lanes,
        "VECTOR": min(UNIT_VECTOR, config.block_size // config.lanes),
        "SPLITS": num_splits(config, num_columns),
    }


def _sides(inputs: UnitInputs) -> tuple[Tensor, ...]:
    return (
        inputs.student_logits,
        inputs.teacher_logits,
        inputs.student_columns,
        inputs.teacher_columns,
        inputs.student_rows,
        inputs.teacher_rows,
        inputs.excluded,
    )


def _strides(inputs: UnitInputs) -> tuple[int, ...]:
    num_lists, num_columns = inputs.student_columns.shape
    shared = 0 if num_lists == 1 else num_columns
    return inputs.student_logits.stride(0), inputs.teacher_logits.stride(0), shared


def _new_stats(inputs: UnitInputs) -> UnitStats:
    num_units, device = inputs.student_rows.shape[0], inputs.student_logits.device
    dtype = torch.promote_types(inputs.student_logits.dtype, torch.float32)
    return UnitStats(
        unit_kl=torch.empty(num_units, dtype=dtype, device=device),
        unit_entropy=torch.empty(num_units, dtype=dtype, device=device),
        unit_state=torch.empty((num_units, len(RowState)), dtype=torch.float64, device=device),
    )


def unit_forward(inputs: UnitInputs, spec: DivergenceSpec, *, config: SweepConfig | None = None) -> UnitStats:
    """Compute the divergence of every unit that is compared.

    Args:
        inputs: Logits, columns, rows and span scores.
        spec: What to compute; its vocabulary is that of the shared columns.
        config: Launch configuration instead of the table's, for tuning and tests.

    Returns:
        The statistics.

    Raises:
        ValueError: If no launch configuration is listed for the device.
    """
    from sod_kernels.triton.unit_kernels import finish_units_kernel, unit_mixture_kernel, unit_sweep_kernel

    student, num_units = inputs.student_logits, inputs.student_rows.shape[0]
    config = config or config_for(student).forward
    meta = unit_meta(config, spec.vocab_size)
    stats = _new_stats(inputs)
    temperature = float64_arguments(1.0 / spec.temperature)
    mixture = float64_arguments(spec.beta)
    is_jsd = spec.divergence == "jsd"
    state = stats.unit_kl.new_empty(num_units, 2, 3, meta["SPLITS"])
    partial = stats.unit_kl.new_empty(num_units, 3, meta["SPLITS"]) if is_jsd else None
    programs = num_units * meta["SPLITS"]
    with torch.cuda.device_of(student):
        launch(
            unit_sweep_kernel,
            programs,
            *(*_sides(inputs), state, *_strides(inputs), *temperature),
            # The Jensen-Shannon divergence reads the log-sum-exps only, and shares a binary.
            MEASURE="forward_kl" if spec.divergence == "forward_kl" else "reverse_kl",
            **config.resources,
            **meta,
        )
        if is_jsd:
            launch(
                unit_mixture_kernel,
                programs,
                *(*_sides(inputs), inputs.span_scores, state, partial),
                *(*_strides(inputs), *temperature, *mixture),
                **config.resources,
                **meta,
            )
        launch(
            finish_units_kernel,
            num_units,
            *(inputs.student_rows, inputs.span_scores, state, partial, *stats, *temperature, *mixture),
            DIVERGENCE=spec.divergence,
            SPLITS=meta["SPLITS"],
            num_warps=1,
        )
    return stats


def unit_backward(
    upstream: UnitGradients,
    inputs: UnitInputs,
    unit_state: Tensor,
    spec: DivergenceSpec,
    vocab_size: int,
    *,
    config: SweepConfig | None = None,
) -> Tensor:
    """Compute the gradient of the student's logits from that of the units.

    Args:
        upstream: Gradients of the divergences, and the terms of the span columns.
        inputs: As in the forward.
        unit_state: (U, 7) from the forward.
        spec: As in the forward.
        vocab_size: Valid columns of the student.
        config: Launch configuration instead of the table's, for tuning and tests.

    Returns:
        (N, width) contiguous, dtype of the student's logits; 0 at rows in no unit and padding columns.

    Raises:
        ValueError: If no launch configuration is listed for the device.
    """
    from sod_kernels.triton.unit_kernels import unit_columns_kernel

    student = inputs.student_logits
    config = config or config_for(student).backward
    splits = num_splits(config, spec.vocab_size)
    grad = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    with torch.cuda.device_of(student):
        _whole_rows(grad, upstream, inputs, spec, vocab_size, config)
        launch(
            unit_columns_kernel,
            inputs.student_rows.shape[0] * splits,
            *(grad, *_sides(inputs), unit_state, upstream.unit_kl, upstream.dense, *_strides(inputs)),
            *float64_arguments(1.0 / spec.temperature, spec.beta),
            DIVERGENCE=spec.divergence,
            VOCAB=spec.vocab_size,
            WIDTH=student.shape[1],
            BLOCK=config.block_size,
            SPLITS=splits,
            **config.resources,
        )
    # One entry per row, so that the order of threads does not matter.
    labels = upstream.labels[:, None]
    onehot = upstream.onehot[:, None] / spec.temperature
    return grad.scatter_(1, labels, (grad.gather(1, labels) + onehot).to(grad.dtype))


def _whole_rows(
    grad: Tensor,
    upstream: UnitGradients,
    inputs: UnitInputs,
    spec: DivergenceSpec,
    vocab_size: int,
    config: SweepConfig,
) -> None:
    """Write the dense terms, and zeros to rows without one."""
    from sod_kernels.triton.backward_kernels import backward_kernel

    student, num_rows = inputs.student_logits, inputs.student_logits.shape[0]
    meta: dict[str, Any] = gradient_meta(config, vocab_size, student.shape[1])
    # The sweep subtracts p times the gradient of a log-probability.
    grad_log_probs = -upstream.dense.to(upstream.unit_kl.dtype)
    no_entropy = torch.zeros_like(grad_log_probs)
    step_ids = torch.where(grad_log_probs == 0, -1, 0)
    row_state = torch.stack([upstream.row_lse, torch.zeros_like(upstream.row_lse)], -1)
    launch(
        backward_kernel,
        num_rows * meta["SPLITS"],
        *(grad, student, None, None, step_ids, None, row_state, None, None, grad_log_probs, no_entropy),
        num_rows,
        *(0, student.stride(0), 0, 0, 0, 0),
        *float64_arguments(1.0 / spec.temperature, 0.0, 0.0),
        DIVERGENCE="none",
        HAS_FLOOR=False,
        **config.resources,
        **meta,
    )
