"""What a chunk of the student's logits is held against: another model's logits, or lists of ids."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._list_sweeps import ListInputs, ListSweeps
from sod_kernels._parallel import ShardedSweeps
from sod_kernels._parallel_log_probs import ShardedLogProbs
from sod_kernels.linear.inputs import LinearOptions
from sod_kernels.types import DivergenceSpec, TokenGradients, TokenInputs, TokenStats

ChunkInputs = TokenInputs | ListInputs


class RowSweeps(Protocol):
    """The two sweeps over a chunk's logits; each kind takes the inputs of its own kind."""

    def forward(self, inputs: Any, num_steps: int, spec: DivergenceSpec) -> TokenStats:
        """Run the forward sweep."""
        ...

    def backward(
        self,
        upstream: TokenGradients,
        inputs: Any,
        row_state: Tensor,
        spec: DivergenceSpec,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Run the backward sweep."""
        ...


def row_sweeps(options: LinearOptions, *, width: int) -> RowSweeps:
    """Choose what runs on the logits of a chunk.

    Args:
        options: Backend, tail and shard are read.
        width: Columns of the student's head on this rank, padding included.

    Returns:
        The sweeps of the backend: against lists where a tail says that there are some, and over a shard of
        the columns where there is a process group.
    """
    backend = _dispatch.load(options.backend)
    group = options.group
    if options.tail is None:
        return backend if group is None else ShardedSweeps(backend, group, width=width)
    if group is None:
        return ListSweeps(backend, options.tail, vocab_size=options.vocab_size)
    sharded = ShardedLogProbs(backend, options.first_column, group, width=width)
    return ListSweeps(sharded, options.tail, vocab_size=options.total_columns)
