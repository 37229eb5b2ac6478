"""What a chunk of the student's logits is held against: another model's logits, lists of ids, or nothing."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._list_sweeps import ListInputs, ListSweeps
from sod_kernels._parallel import ShardedSweeps
from sod_kernels._parallel_log_probs import ShardedLogProbs
from sod_kernels.linear.inputs import LinearOptions
from sod_kernels.types import (
    Backend,
    DivergenceSpec,
    LogProbGradients,
    LogProbInputs,
    TokenGradients,
    TokenInputs,
    TokenStats,
)


class RowInputs(NamedTuple):
    """What both sweeps over one model alone read.

    Attributes:
        student_logits: (B, T, >= vocab_size) floating, last stride 1.
        step_ids: (B, T) int64, -1 in no step.
        sampled_ids: (B, T) int64.
    """

    student_logits: Tensor
    step_ids: Tensor
    sampled_ids: Tensor


ChunkInputs = TokenInputs | ListInputs | RowInputs


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


class LoneSweeps:
    """The log-prob sweeps of a backend in the form of its sweeps against a target, of which there is none."""

    def __init__(self, backend: Backend) -> None:
        """Choose what runs.

        Args:
            backend: That runs.
        """
        self._backend = backend

    def forward(self, inputs: RowInputs, num_steps: int, spec: DivergenceSpec) -> TokenStats:
        """Run the forward sweep.

        Args:
            inputs: Logits and the ids to look up.
            num_steps: S.
            spec: Temperature and valid columns are read.

        Returns:
            Log-probabilities, entropy and the state of the log-prob sweeps; 0 for all that takes a target.
        """
        swept = self._backend.log_probs_forward(_problem(inputs, spec))
        log_probs = swept.log_probs[..., 0]
        nothing = log_probs.new_zeros(log_probs.shape)
        return TokenStats(
            token_kl=nothing,
            token_reference_kl=nothing[:0],
            student_log_probs=log_probs,
            teacher_log_probs=nothing,
            student_entropy=swept.student_entropy,
            row_state=swept.row_state,
            step_sums=swept.row_state.new_zeros(num_steps, 5),
        )

    def backward(
        self,
        upstream: TokenGradients,
        inputs: RowInputs,
        row_state: Tensor,
        spec: DivergenceSpec,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Run the backward sweep.

        Args:
            upstream: Gradients of log-probabilities and entropy.
            inputs: As in `forward`.
            row_state: From `forward`.
            spec: As in `forward`.
            out: Takes the gradient; may be the student's logits. None for a fresh tensor.

        Returns:
            Contiguous gradient of `student_logits`' shape and dtype.
        """
        of_ids = upstream.student_log_probs[..., None].contiguous()
        gradients = LogProbGradients(of_ids, upstream.student_entropy.contiguous())
        return self._backend.log_probs_backward(
            gradients, _problem(inputs, spec), row_state.contiguous(), out=out
        )


def _problem(inputs: RowInputs, spec: DivergenceSpec) -> LogProbInputs:
    return LogProbInputs(
        inputs.student_logits,
        inputs.step_ids.contiguous(),
        inputs.sampled_ids[..., None].contiguous(),
        spec.temperature,
        spec.vocab_size,
    )


def row_sweeps(options: LinearOptions, *, width: int, has_target: bool) -> RowSweeps:
    """Choose what runs on the logits of a chunk.

    Args:
        options: Backend, tail and shard are read.
        width: Columns of the student's head on this rank, padding included.
        has_target: Whether the student is held against anything; it always is with a process group.

    Returns:
        The sweeps of the backend: against lists where a tail says that there are some, and over a shard of
        the columns where there is a process group.
    """
    backend = _dispatch.load(options.backend)
    if not has_target:
        return LoneSweeps(backend)
    group = options.group
    if options.tail is None:
        return (
            backend
            if group is None
            else ShardedSweeps(backend, group, width=width, function=options.function)
        )
    if group is None:
        return ListSweeps(backend, options.tail, vocab_size=options.vocab_size, backend=options.backend)
    sharded = ShardedLogProbs(backend, options.first_column, group, width=width, function=options.function)
    return ListSweeps(sharded, options.tail, vocab_size=options.total_columns, backend=options.backend)
