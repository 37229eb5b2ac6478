"""Runs the alignment of the compiled CPU library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels.native import loader
from sod_kernels.token_bytes import TokenBytes


def align(
    ids: tuple[Tensor, Tensor],
    segments: tuple[Tensor, Tensor],
    is_truncated: Tensor,
    tables: tuple[TokenBytes, TokenBytes],
    symbols: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor] | int:
    """Find the minimal units of every segment. Everything must have been checked.

    Args:
        ids: (N,) and (M,) int64, contiguous, on the CPU, inside the tables.
        segments: (G, 2) int64 each, contiguous, inside the ids.
        is_truncated: (G,) uint8, contiguous.
        tables: What the tokens spell, both sides.
        symbols: By id, int32, of both sides: -1 for text, from 0 for control tokens by what they mean.

    Returns:
        Student spans and teacher spans, (U, 2) int64, and units of each segment, (G,) int64; or the number of
        the first segment whose texts differ.
    """
    library = loader.load("cpu")
    lengths = torch.stack([each.diff(dim=1).squeeze(1) for each in segments])
    room = int(lengths.min(0).values.sum())
    spans = torch.empty(2, room, 2, dtype=torch.int64)
    counts = torch.empty(segments[0].shape[0], dtype=torch.int64)
    student, teacher = (
        _token_table(library, table, numbers) for table, numbers in zip(tables, symbols, strict=True)
    )
    problem = library.AlignmentProblem(
        student=student,
        teacher=teacher,
        student_ids=ids[0].data_ptr(),
        teacher_ids=ids[1].data_ptr(),
        student_segments=segments[0].data_ptr(),
        teacher_segments=segments[1].data_ptr(),
        is_truncated=is_truncated.data_ptr(),
        num_segments=counts.numel(),
    )
    outputs = library.AlignmentOutputs(
        student_spans=spans[0].data_ptr(),
        teacher_spans=spans[1].data_ptr(),
        segment_units=counts.data_ptr(),
    )
    failed = library.align(problem=problem, outputs=outputs)
    if failed >= 0:
        return int(failed)
    num_units = int(counts.sum())
    # A copy, since the room for more units would be kept alive by a view.
    return spans[0, :num_units].clone(), spans[1, :num_units].clone(), counts


def _token_table(library: Any, table: TokenBytes, symbols: Tensor) -> Any:
    return library.TokenTable(
        bytes=table.data.data_ptr(),
        offsets=table.offsets.data_ptr(),
        symbols=symbols.data_ptr(),
        has_prefix_space=table.has_prefix_space,
    )
