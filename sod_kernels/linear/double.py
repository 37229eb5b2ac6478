"""Token outputs in one sweep, and gradients for whatever was built on them in a second one.

Between the two only numbers per token are kept; the logits are projected again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sod_kernels import _collectives
from sod_kernels.linear.heads import HeadGradients, Wanted
from sod_kernels.linear.inputs import LinearInputs, LinearOptions
from sod_kernels.linear.sweep import ChunkSweep, TokenLedger
from sod_kernels.types import TokenGradients, TokenStats


def run_forward(
    inputs: LinearInputs, options: LinearOptions, *, make_sweep: Callable[..., ChunkSweep] = ChunkSweep
) -> TokenStats:
    """Compute every token statistic and their sums per step.

    Args:
        inputs: Tensors.
        options: Numbers and names of the sweep.
        make_sweep: Makes the walk; takes the arguments of `ChunkSweep`.

    Returns:
        (N,) token tensors, the row state and the (S, 5) sums.
    """
    sweep = make_sweep(inputs, options)
    ledger = TokenLedger(sweep, has_row_state=True)
    for chunk in sweep.chunks:
        ledger.record(chunk, sweep.measure(sweep.read(chunk), chunk))
    return ledger.outputs()


def run_backward(
    upstream: TokenGradients,
    inputs: LinearInputs,
    options: LinearOptions,
    row_state: Tensor,
    wanted: Wanted,
    *,
    make_sweep: Callable[..., ChunkSweep] = ChunkSweep,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of the student's head for any upstream gradients of the outputs.

    Args:
        upstream: (N,) gradients of the differentiable outputs.
        inputs: As in `run_forward`.
        options: As in `run_forward`.
        row_state: From `run_forward`.
        wanted: Which gradients are asked for.
        make_sweep: As in `run_forward`.

    Returns:
        Gradients of hidden states, weight and bias in the computing dtype, (0,) where not wanted.
    """
    sweep = make_sweep(inputs, options)
    student = sweep.heads.student
    sums = HeadGradients(student, wanted, sweep.dtype)
    of_hidden = torch.zeros_like(student.hidden, dtype=sweep.dtype) if wanted.hidden else None
    for chunk in sweep.chunks:
        part = TokenGradients(
            *(
                each if each.shape != inputs.step_ids.shape else sweep.rows.pick(each, chunk).unsqueeze(0)
                for each in upstream
            )
        )
        state = sweep.rows.pick(row_state, chunk).unsqueeze(0)
        grad = sweep.differentiate(part, sweep.read(chunk), state, slice(None))
        total = sums.add(grad, sweep.student_hidden(chunk))
        if of_hidden is not None and total is not None:
            sweep.rows.add(of_hidden, total, chunk.begin)
    if of_hidden is not None and options.group is not None:
        # Each rank has gone back through its own rows of the head.
        _collectives.add_up(of_hidden, options.group)
    empty = row_state.new_empty
    given = (of_hidden, sums.weight, sums.bias)
    hidden, weight, bias = (empty(0, dtype=sweep.dtype) if each is None else each for each in given)
    return hidden, weight, bias
