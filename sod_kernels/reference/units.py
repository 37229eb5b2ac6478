"""Units of two tokenisers: the definition of `sod_kernels.reference.backend` on rows gathered by blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sod_kernels.reference import rows
from sod_kernels.types import DivergenceSpec, TokenGradients, TokenInputs, TokenStats
from sod_kernels.unit_types import UnitGradients, UnitInputs, UnitStats

_Forward = Callable[[TokenInputs, int, DivergenceSpec], TokenStats]
_Backward = Callable[[TokenGradients, TokenInputs, Tensor, DivergenceSpec], Tensor]


def _blocks(count: int, width: int) -> Iterator[slice]:
    for _, block in rows.blocks((1, count), width):
        yield slice(block.start, min(block.stop, count))


def _gather(inputs: UnitInputs, units: Tensor, is_active: Tensor) -> TokenInputs:
    """(1, u, C + 1) rows in float64 of the units with these numbers; the span column is the last."""
    sides = []
    for side, (logits, columns, first) in enumerate(
        (
            (inputs.student_logits, inputs.student_columns, inputs.student_rows),
            (inputs.teacher_logits, inputs.teacher_columns, inputs.teacher_rows),
        )
    ):
        listed = columns if columns.shape[0] == 1 else columns[units]
        row = torch.where(is_active, first[units], 0)
        gathered = logits[row[:, None], listed.long()].double()
        position = torch.arange(gathered.shape[1], device=gathered.device)
        for excluded in inputs.excluded[units].unbind(-1):
            gathered = torch.where(position == excluded[:, None], -torch.inf, gathered)
        sides.append(torch.cat([gathered, inputs.span_scores[units, side, None]], -1)[None])
    step_ids = torch.where(is_active, 0, -1)[None]
    return TokenInputs(sides[0], sides[1], None, step_ids, None)


def unit_forward(inputs: UnitInputs, spec: DivergenceSpec, sweep: _Forward) -> UnitStats:
    """Compute the divergence of every unit that is compared.

    Args:
        inputs: Logits, columns, rows and span scores.
        spec: What to compute; its vocabulary is that of the shared columns.
        sweep: The forward sweep over rows.

    Returns:
        The statistics, in float32 (float64 for float64 logits).
    """
    wide = replace(spec, vocab_size=spec.vocab_size + 1)
    found = []
    for block in _blocks(inputs.student_rows.shape[0], wide.vocab_size):
        units = torch.arange(block.start, block.stop, device=inputs.student_rows.device)
        stats = sweep(_gather(inputs, units, inputs.student_rows[units] >= 0), 1, wide)
        found.append((stats.token_kl[0], stats.student_entropy[0], stats.row_state[0]))
    unit_kl, entropy, state = (torch.cat(each) for each in zip(*found, strict=True))
    dtype = torch.promote_types(inputs.student_logits.dtype, torch.float32)
    return UnitStats(unit_kl.to(dtype, copy=True), entropy.to(dtype, copy=True), state)


def unit_backward(
    upstream: UnitGradients,
    inputs: UnitInputs,
    unit_state: Tensor,
    spec: DivergenceSpec,
    vocab_size: int,
    sweep: _Backward,
) -> Tensor:
    """Compute the gradient of the student's logits.

    Args:
        upstream: Gradients of the divergences, and the terms of the span columns.
        inputs: As in the forward sweep.
        unit_state: From the forward sweep.
        spec: As in the forward sweep.
        vocab_size: Valid columns of the student.
        sweep: The backward sweep over rows.

    Returns:
        Contiguous gradient of `student_logits`' shape and dtype.
    """
    wide = replace(spec, vocab_size=spec.vocab_size + 1)
    student = inputs.student_logits
    grad = torch.zeros(student.shape, dtype=student.dtype, device=student.device)
    num_rows = student.shape[0]
    for block in _blocks(num_rows, max(vocab_size, wide.vocab_size)):
        dense, begun = upstream.dense[block, None], upstream.row_units[block]
        log_p = student[block, :vocab_size].double() / spec.temperature - upstream.row_lse[block, None]
        total = torch.where(dense == 0, 0.0, dense * log_p.exp())
        total = total.scatter_add(-1, upstream.labels[block, None], upstream.onehot[block, None])
        total = total / spec.temperature
        # A unit of no gradient stands in where none begins.
        units = begun.clamp(min=0)
        is_first = (begun >= 0) & (inputs.student_rows[units] >= 0)
        gathered = _gather(inputs, units, is_first)
        zero = torch.zeros_like(units[None], dtype=torch.float64)
        of_units = TokenGradients(upstream.unit_kl[units][None].double(), zero[:0], zero[:0], zero)
        columns = inputs.student_columns
        columns = columns if columns.shape[0] == 1 else columns[units]
        at_columns = sweep(of_units, gathered, unit_state[units][None], wide)[0, :, :-1]
        total = total.scatter_add(-1, columns.long().expand(at_columns.shape), at_columns)
        grad[block, :vocab_size] = total.to(grad.dtype)
    return grad
