"""In which order, and in which chunks, the rows of a batch are walked: decided on the host from the step ids.

Rows in no step are left out, so they cost nothing. The others come in the order of their step ids, so that at
any border every step before the last one is complete, and at most one step stays open.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_MIN_ROWS = 16
_CHUNK_BYTES = {"cpu": 300 << 20}
_CHUNK_BYTES_ELSEWHERE = 3 << 29


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows that are projected together; rows and ranks count in the order of the plan.

    Attributes:
        begin: First row.
        end: Row after the last one.
        first_rank: Rank of the step of the first row.
        stop_rank: Rank after that of the last row.
        num_open: Rows at the end whose step goes on in the next chunk.
    """

    begin: int
    end: int
    first_rank: int
    stop_rank: int
    num_open: int

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.end - self.begin

    @property
    def complete_ranks(self) -> int:
        """Steps before this rank are complete after the chunk."""
        return self.stop_rank - (1 if self.num_open else 0)


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """The walk over a batch of N rows, of which M are in a step, over R steps with tokens of S.

    Attributes:
        num_rows: M.
        offset: First row in a step, where those rows are neighbours and in order already.
        rows: (M,) int64 rows in order, where they are not; None otherwise.
        ranks: (M,) int64 rank of each row's step: its number among the steps with tokens.
        steps: (R,) int64 step id of each rank.
        tokens: (S,) int64 tokens of each step.
        chunks: What is projected together.
    """

    num_rows: int
    offset: int
    rows: Tensor | None
    ranks: Tensor
    steps: Tensor
    tokens: Tensor
    chunks: tuple[Chunk, ...]


def make_plan(
    step_ids: Tensor, num_steps: int, *, chunk_size: int, keeps_steps_whole: bool, spare_rows: int = 0
) -> RowPlan:
    """Plan the walk over the rows that are in a step.

    Args:
        step_ids: (N,) int64 on the CPU, in [-1, num_steps).
        num_steps: S.
        chunk_size: Most rows of a chunk, at least 1.
        keeps_steps_whole: Whether a border moves back to the end of a step where one lies in the second half
            of the chunk; it saves work where a step's weight is known only when the step is complete.
        spare_rows: With whole steps, by how many rows a chunk may outgrow `chunk_size` to reach the end of a
            step. None outgrows it where a step would still be cut: the memory for that is needed then anyway.

    Returns:
        The plan.
    """
    active = torch.nonzero(step_ids >= 0).flatten()
    ids = step_ids[active]
    tokens = torch.bincount(ids, minlength=num_steps)
    steps = torch.nonzero(tokens).flatten()
    # Rank of each step with tokens; the others are not looked up.
    ranks = ((tokens > 0).cumsum(0) - 1)[ids]
    if bool((ranks[1:] < ranks[:-1]).any()):
        ranks, order = torch.sort(ranks, stable=True)
        active = active[order]
    num_rows = active.numel()
    offset = int(active[0]) if num_rows else 0
    is_run = num_rows == 0 or bool((active == torch.arange(offset, offset + num_rows)).all())
    step_ends = tokens[steps].cumsum(0).tolist()
    borders = _borders(step_ends, num_rows, chunk_size, keeps_steps_whole)
    if keeps_steps_whole and spare_rows > 0:
        larger = _borders(step_ends, num_rows, chunk_size, keeps_steps_whole, spare_rows)
        borders = larger if {0, *step_ends}.issuperset(larger) else borders
    return RowPlan(
        num_rows=num_rows,
        offset=offset if is_run else 0,
        rows=None if is_run else active,
        ranks=ranks,
        steps=steps,
        tokens=tokens,
        chunks=tuple(_chunk(begin, end, step_ends) for begin, end in pairwise(borders)),
    )


def _borders(
    step_ends: list[int], num_rows: int, chunk_size: int, keeps_steps_whole: bool, spare_rows: int = 0
) -> list[int]:
    """First row of each chunk, and the number of rows."""
    # Chunks of one size, rather than full ones and a short last one.
    size = -(-num_rows // -(-num_rows // chunk_size)) if num_rows else chunk_size
    borders = [0]
    while borders[-1] < num_rows:
        begin, end = borders[-1], min(borders[-1] + size, num_rows)
        if keeps_steps_whole:
            position = bisect_right(step_ends, end)
            last = step_ends[position - 1] if position else 0
            if 2 * (last - begin) >= size:
                end = last
            elif last < end and step_ends[position] - begin <= chunk_size + spare_rows:
                end = step_ends[position]
        borders.append(end)
    return borders


def _chunk(begin: int, end: int, step_ends: list[int]) -> Chunk:
    first = bisect_right(step_ends, begin)
    last = bisect_right(step_ends, end - 1)
    last_begin = max(step_ends[last - 1] if last else 0, begin)
    is_open = step_ends[last] > end
    return Chunk(
        begin=begin,
        end=end,
        first_rank=first,
        stop_rank=last + 1,
        num_open=end - last_begin if is_open else 0,
    )


def default_chunk_size(vocab_size: int, num_buffers: int, element_bytes: int, device_type: str) -> int:
    """Choose the rows of a chunk so that its logits stay within 300 MiB on the CPU and 1.5 GiB elsewhere.

    Args:
        vocab_size: Columns of each buffer.
        num_buffers: Buffers of chunk rows by columns.
        element_bytes: Bytes of an entry.
        device_type: Such as "cpu" or "cuda".

    Returns:
        A multiple of 16, at least 16.
    """
    budget = _CHUNK_BYTES.get(device_type, _CHUNK_BYTES_ELSEWHERE)
    rows = budget // (vocab_size * num_buffers * element_bytes)
    return max(_MIN_ROWS, rows - rows % _MIN_ROWS)
