"""The walk over chunks of units: the shared columns of both heads, and the span as one more column."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sod_kernels.linear.heads import apply_softcap_slope
from sod_kernels.linear.inputs import LinearInputs, LinearOptions
from sod_kernels.linear.plan import Chunk
from sod_kernels.linear.sweep import ChunkSweep, rows_of
from sod_kernels.linear.targets import ChunkInputs
from sod_kernels.types import TokenGradients, TokenInputs


class UnitColumns(NamedTuple):
    """What makes rows over shared columns the rows of units.

    Attributes:
        scores: (U, 2) span column of student and teacher in raw logits; -inf on both sides without one.
        excluded: (U, 2) int64 positions among the columns that do not take part, -1 for none.
        topk: How many columns each unit compares, the student's likeliest; 0 for all.
    """

    scores: Tensor
    excluded: Tensor
    topk: int


class UnitSweep(ChunkSweep):
    """A `ChunkSweep` over units as rows, whose last column is the span."""

    num_extra = 1

    def __init__(
        self, inputs: LinearInputs, options: LinearOptions, *, columns: UnitColumns, **plan: Any
    ) -> None:
        """Plan the walk and allocate the buffers.

        Args:
            inputs: Hidden states of the units' first rows, and the shared rows of both heads.
            options: Numbers and names.
            columns: Spans and choices.
            **plan: As `ChunkSweep` takes them.
        """
        super().__init__(inputs, options, **plan)
        self._columns = columns
        self._chosen = inputs.step_ids.new_empty(0)
        if columns.topk:
            self._spec = options._replace(vocab_size=columns.topk + 1).spec

    def read(self, chunk: Chunk) -> ChunkInputs:
        """Compute the logits of a chunk, its spans included.

        Args:
            chunk: Of the plan.

        Returns:
            What the sweeps take; with `topk` copies of the chosen columns.
        """
        inputs = cast(TokenInputs, super().read(chunk))
        excluded = self.rows.pick(self._columns.excluded, chunk)
        # The span's place is written after it.
        excluded = torch.where(excluded < 0, self._width, excluded)
        scores = self.rows.pick(self._columns.scores, chunk)
        student, teacher = inputs.student_logits[0], inputs.teacher_logits[0]
        for logits, score in zip((student, teacher), scores.unbind(-1), strict=True):
            logits.scatter_(1, excluded, -torch.inf)
            logits[:, -1] = score
        if not self._columns.topk:
            return inputs
        chosen = student[:, :-1].topk(self._columns.topk, dim=-1).indices.sort(-1).values
        self._chosen = torch.nn.functional.pad(chosen, (0, 1), value=self._width)
        return TokenInputs(
            student.gather(1, self._chosen)[None],
            teacher.gather(1, self._chosen)[None],
            None,
            inputs.step_ids,
            None,
        )

    def differentiate(
        self,
        upstream: TokenGradients,
        inputs: ChunkInputs,
        row_state: Tensor,
        rows: slice,
        *,
        keeps_logits: bool = False,
    ) -> Tensor:
        """Run the backward sweep over some units of a chunk, and back through the softcap.

        Args:
            upstream: As in `ChunkSweep.differentiate`, like the rest.
            inputs: Of the chunk.
            row_state: Of the chunk.
            rows: Of the chunk.
            keeps_logits: See there; with `topk` always so.

        Returns:
            (c, C) gradient of the products over the shared columns, valid until the next call.
        """
        if not self._columns.topk:
            return super().differentiate(upstream, inputs, row_state, rows, keeps_logits=keeps_logits)
        part = rows_of(inputs, rows)
        grad = self._sweeps.backward(upstream, part, row_state[:, rows], self._spec)[0]
        softcap = self.heads.student.softcap
        if softcap is not None:
            apply_softcap_slope(grad, part.student_logits[0], softcap)
        out = self._student[: grad.shape[0], : self._width]
        return out.zero_().scatter_(1, self._chosen[rows, :-1], grad[:, :-1])
