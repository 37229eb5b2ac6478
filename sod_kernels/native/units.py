"""The unit sweeps of the compiled library: two vocabularies, CPU tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels.native import loader, memory
from sod_kernels.native.arguments import DIVERGENCES, addresses, dtype_number
from sod_kernels.types import DivergenceSpec, RowState
from sod_kernels.unit_types import UnitGradients, UnitInputs, UnitStats


def unit_forward(inputs: UnitInputs, spec: DivergenceSpec) -> UnitStats:
    """Compute the divergence of every unit that is compared.

    Args:
        inputs: Logits in float32, bfloat16 or float16 on the CPU; columns, rows and span scores.
        spec: What to compute; its vocabulary is that of the shared columns.

    Returns:
        The statistics; every element is written.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
        NativeUnavailableError: The library cannot run here.
    """
    library = loader.load("cpu")
    num_units = inputs.student_rows.shape[0]
    stats = UnitStats(
        unit_kl=torch.empty(num_units, dtype=torch.float32),
        unit_entropy=torch.empty(num_units, dtype=torch.float32),
        unit_state=torch.empty((num_units, len(RowState)), dtype=torch.float64),
    )
    library.unit_forward(
        problem=_problem(library, "unit_forward", inputs, spec),
        outputs=library.UnitOutputs(**addresses(stats)),
        num_threads=torch.get_num_threads(),
    )
    return stats


def unit_backward(
    upstream: UnitGradients, inputs: UnitInputs, unit_state: Tensor, spec: DivergenceSpec, vocab_size: int
) -> Tensor:
    """Compute the gradient of the student's logits from that of the units.

    Args:
        upstream: Gradients of the divergences, and the terms of the span columns.
        inputs: As in `unit_forward`.
        unit_state: (U, 7) float64 from `unit_forward`.
        spec: What `unit_forward` computed.
        vocab_size: Valid columns of the student.

    Returns:
        Contiguous gradient of `student_logits`' shape and dtype; 0 at rows in no unit and padding columns.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
        NativeUnavailableError: The library cannot run here.
    """
    library = loader.load("cpu")
    student = inputs.student_logits
    gradient = memory.empty_like(student)
    library.unit_backward(
        problem=_problem(library, "unit_backward", inputs, spec),
        upstream=library.UnitUpstream(
            **addresses(upstream),
            unit_state=unit_state.data_ptr(),
            num_rows=student.shape[0],
            vocab_size=vocab_size,
        ),
        gradient=library.Gradient(data=gradient.data_ptr(), width=student.shape[1]),
        num_threads=torch.get_num_threads(),
    )
    return gradient


def _problem(library: Any, function: str, inputs: UnitInputs, spec: DivergenceSpec) -> Any:
    """Turn checked tensors into the library's argument struct; the caller keeps the tensors alive."""
    sides = {
        name: library.UnitSide(
            data=logits.data_ptr(),
            stride=logits.stride(0),
            width=logits.shape[1],
            columns=columns.data_ptr(),
            rows=rows.data_ptr(),
        )
        for name, logits, columns, rows in (
            ("student", inputs.student_logits, inputs.student_columns, inputs.student_rows),
            ("teacher", inputs.teacher_logits, inputs.teacher_columns, inputs.teacher_rows),
        )
    }
    num_lists, num_columns = inputs.student_columns.shape
    return library.UnitProblem(
        dtype=dtype_number(function, inputs.student_logits),
        num_units=inputs.student_rows.shape[0],
        num_columns=num_columns,
        stride_columns=0 if num_lists == 1 else num_columns,
        **sides,
        excluded=inputs.excluded.data_ptr(),
        span_scores=inputs.span_scores.data_ptr(),
        divergence=DIVERGENCES[spec.divergence],
        beta=spec.beta,
        temperature=spec.temperature,
    )
