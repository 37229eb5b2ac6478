"""The walk that both modes share: chunk logits of every model, statistics of a chunk, gradient of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels._list_sweeps import ListInputs
from sod_kernels.linear.heads import Head, apply_softcap_slope, project
from sod_kernels.linear.inputs import Heads, LinearInputs, LinearOptions, make_heads
from sod_kernels.linear.plan import Chunk, default_chunk_size, make_plan
from sod_kernels.linear.rows import PlannedRows
from sod_kernels.linear.targets import ChunkInputs, RowInputs, row_sweeps
from sod_kernels.native import memory
from sod_kernels.types import TokenGradients, TokenInputs, TokenStats


class ChunkSweep:
    """Projects the rows of a plan chunk by chunk, into buffers that every chunk uses again.

    Attributes:
        heads: Of all models.
        rows: The rows in a step, in the order of the walk.
        dtype: Of chunk logits and token outputs.
        chunks: What is walked.
        state_width: Columns of the row state.
    """

    # Columns of the buffers behind those that are projected, which a derived class fills.
    num_extra = 0

    def __init__(
        self,
        inputs: LinearInputs,
        options: LinearOptions,
        *,
        keeps_steps_whole: bool = False,
        keeps_logits: bool = False,
        num_waiting: int = 0,
    ) -> None:
        """Plan the walk and allocate the buffers.

        Args:
            inputs: Tensors.
            options: Numbers and names.
            keeps_steps_whole: See `make_plan`.
            keeps_logits: Whether a gradient may have to leave the student's logits as they are.
            num_waiting: Gradients of the student's weight that a step cut in two would wait in. Unless the
                caller chose the chunks, they grow to the end of a step where that takes less memory.
        """
        self.heads: Heads = make_heads(inputs, options)
        self.dtype = inputs.dtype
        self._width = options.vocab_size
        self._spec = options._replace(vocab_size=self._width + self.num_extra).spec
        width = inputs.student_weight.shape[0]
        self._sweeps = row_sweeps(options, width=width, has_target=inputs.has_target)
        given = (inputs.teacher_log_probs, inputs.teacher_ids, inputs.teacher_tail)
        self._lists = [each for each in given if each is not None]
        self.state_width = inputs.state_width
        hidden = inputs.student_hidden
        has_spare = keeps_logits or options.student_softcap is not None
        num_buffers = sum(head is not None for head in self.heads) + has_spare
        # The ranks of a group must cut the same chunks, however few columns of the last one are valid.
        columns = options.vocab_size if options.group is None else width
        element_bytes = torch.finfo(self.dtype).bits // 8
        default = default_chunk_size(columns, num_buffers, element_bytes, hidden.device.type)
        plan = make_plan(
            inputs.step_ids.cpu(),
            options.num_steps,
            chunk_size=options.chunk_size or default,
            keeps_steps_whole=keeps_steps_whole,
            spare_rows=0 if options.chunk_size else num_waiting * hidden.shape[1] // num_buffers,
        )
        self.chunks = plan.chunks
        self.rows = PlannedRows(plan, hidden.shape[0], hidden.device)
        self._sampled = None if inputs.sampled_ids is None else self.rows.pick(inputs.sampled_ids)
        rows = max((chunk.num_rows for chunk in self.chunks), default=0)
        buffers = memory.empty((num_buffers, rows, self._width + self.num_extra), self.dtype, hidden.device)
        # The reference comes with a teacher's head only, as the third.
        self._student, self._others = buffers[0], buffers[1:]
        # The last buffer; read only where it was asked for.
        self._spare = buffers[-1]

    @property
    def has_sampled(self) -> bool:
        """Whether there are sampled ids."""
        return self._sampled is not None

    def student_hidden(self, chunk: Chunk) -> Tensor:
        """Take the student's hidden states of a chunk.

        Args:
            chunk: Of the plan.

        Returns:
            (C, H) in their own dtype.
        """
        return self.rows.pick(self.heads.student.hidden, chunk)

    def read(self, chunk: Chunk) -> ChunkInputs:
        """Compute the logits of a chunk.

        Args:
            chunk: Of the plan.

        Returns:
            What the sweeps take, as one row of C tokens, its steps counted from the chunk's first.
        """
        heads = self.heads
        student = self._project(heads.student, chunk, self._student)
        ranks = (self.rows.ranks[chunk.begin : chunk.end] - chunk.first_rank).unsqueeze(0)
        sampled = None if self._sampled is None else self._sampled[None, chunk.begin : chunk.end]
        if heads.teacher is None and sampled is not None and not self._lists:
            return RowInputs(student, ranks, sampled)
        if heads.teacher is None:
            log_probs, ids, tail = (self.rows.pick(each, chunk).unsqueeze(0) for each in self._lists)
            return ListInputs(student, log_probs, ids, tail, ranks, sampled)
        teacher = self._project(heads.teacher, chunk, self._others[0])
        reference = None
        if heads.reference is not None:
            reference = self._project(heads.reference, chunk, self._others[1])
        return TokenInputs(student, teacher, reference, ranks, sampled)

    def _project(self, head: Head, chunk: Chunk, buffer: Tensor) -> Tensor:
        logits = buffer[: chunk.num_rows]
        project(head, self.rows.pick(head.hidden, chunk), logits[:, : self._width])
        return logits.unsqueeze(0)

    def measure(self, inputs: ChunkInputs, chunk: Chunk) -> TokenStats:
        """Run the forward sweep over a chunk.

        Args:
            inputs: From `read`.
            chunk: The same.

        Returns:
            Statistics, (1, C); step sums of the chunk's steps.
        """
        return self._sweeps.forward(inputs, chunk.stop_rank - chunk.first_rank, self._spec)

    def differentiate(
        self,
        upstream: TokenGradients,
        inputs: ChunkInputs,
        row_state: Tensor,
        rows: slice,
        *,
        keeps_logits: bool = False,
    ) -> Tensor:
        """Run the backward sweep over some rows of a chunk, and back through the softcap.

        Args:
            upstream: Gradients of those rows, (1, c).
            inputs: Of the chunk.
            row_state: Of the chunk, (1, C, ...).
            rows: Of the chunk, those to differentiate.
            keeps_logits: Whether the rows will be differentiated once more; else their logits are
                overwritten.

        Returns:
            (c, V) gradient of the product with the weight plus bias, valid until the next call.
        """
        part = rows_of(inputs, rows)
        logits, softcap = part.student_logits[0], self.heads.student.softcap
        is_apart = keeps_logits or softcap is not None
        out = self._spare[: logits.shape[0]] if is_apart else logits
        self._sweeps.backward(upstream, part, row_state[:, rows], self._spec, out=out.unsqueeze(0))
        if softcap is not None:
            apply_softcap_slope(out, logits, softcap)
        return out[:, : self._width]


def rows_of(inputs: ChunkInputs, rows: slice) -> ChunkInputs:
    """Take some rows of a chunk.

    Args:
        inputs: Of the chunk.
        rows: Which.

    Returns:
        Views of them.
    """
    return type(inputs)._make(None if each is None else each[:, rows] for each in inputs)


class TokenLedger:
    """Token outputs of a walk, in the order of the plan, and the sums of its steps."""

    def __init__(self, sweep: ChunkSweep, *, has_row_state: bool) -> None:
        """Allocate zeros.

        Args:
            sweep: Whose outputs to keep.
            has_row_state: Whether the row state is kept too.
        """
        self._rows = sweep.rows
        num_rows, num_ranks = sweep.rows.plan.num_rows, sweep.rows.plan.steps.numel()
        ranks = sweep.rows.ranks

        def tokens(is_given: bool = True, *width: int, dtype: torch.dtype = sweep.dtype) -> Tensor:
            return ranks.new_zeros((num_rows if is_given else 0, *width), dtype=dtype)

        has_sampled, has_reference = sweep.has_sampled, sweep.heads.reference is not None
        self._is_kept = (True, has_reference, has_sampled, has_sampled, True, has_row_state)
        self.stats = TokenStats(
            token_kl=tokens(),
            token_reference_kl=tokens(has_reference),
            student_log_probs=tokens(has_sampled),
            teacher_log_probs=tokens(has_sampled),
            student_entropy=tokens(),
            row_state=tokens(has_row_state, sweep.state_width, dtype=torch.float64),
            step_sums=ranks.new_zeros((num_ranks, 5), dtype=torch.float64),
        )

    def record(self, chunk: Chunk, stats: TokenStats) -> None:
        """Keep what a chunk gave.

        Args:
            chunk: Of the plan.
            stats: Of that chunk.
        """
        for total, part, is_kept in zip(self.stats[:-1], stats[:-1], self._is_kept, strict=True):
            if is_kept:
                total[chunk.begin : chunk.end].copy_(part[0])
        self.stats.step_sums[chunk.first_rank : chunk.stop_rank].add_(stats.step_sums)

    def step_sums(self, num_ranks: int) -> Tensor:
        """Spread the sums of the first steps over all steps.

        Args:
            num_ranks: Steps to take.

        Returns:
            (S, 5), 0 at the other steps.
        """
        sums = self.stats.step_sums.new_zeros(self._rows.tokens.shape[0], 5)
        sums[self._rows.steps[:num_ranks]] = self.stats.step_sums[:num_ranks]
        return sums

    def outputs(self) -> TokenStats:
        """Bring everything into the order of the batch.

        Returns:
            (N,) token tensors, the row state if it was kept, (S, 5) sums.
        """
        kept = zip(self.stats[:-1], self._is_kept, strict=True)
        tokens = (self._rows.put(each) if is_kept else each for each, is_kept in kept)
        return TokenStats._make((*tokens, self.step_sums(self._rows.steps.shape[0])))
