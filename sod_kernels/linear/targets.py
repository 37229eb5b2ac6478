"""What a chunk of the student's logits is held against: another model's logits, or lists of ids."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._list_sweeps import ListInputs, ListSweeps
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


def row_sweeps(options: LinearOptions) -> RowSweeps:
    """Choose what runs on the logits of a chunk.

    Args:
        options: Backend and tail are read.

    Returns:
        The sweeps of the backend, against lists where a tail says that there are some.
    """
    backend = _dispatch.load(options.backend)
    return backend if options.tail is None else ListSweeps(backend, options.tail)
