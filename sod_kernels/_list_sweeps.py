"""Token statistics against a teacher known by lists of ids, from a walk over the student's logits alone.

`ListSweeps` gives the two log-prob sweeps of a backend the form of its two sweeps against a teacher's logits,
so that whoever walks over chunks of rows need not know which kind of teacher there is.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sod_kernels import _categories
from sod_kernels._categories import TeacherList
from sod_kernels._checks.values import can_look
from sod_kernels.native import lists
from sod_kernels.types import (
    DivergenceSpec,
    LogProbGradients,
    LogProbInputs,
    LogProbStats,
    TokenGradients,
    TokenStats,
)

# Log-sum-exp and entropy of the student, the row state of the log-prob sweeps; the slopes come after them.
_NUM_STATE_COLUMNS = 2


class LogProbSweeps(Protocol):
    """What of a backend is needed here."""

    def log_probs_forward(self, inputs: LogProbInputs) -> LogProbStats:
        """See `Backend`."""
        ...

    def log_probs_backward(
        self,
        upstream: LogProbGradients,
        inputs: LogProbInputs,
        row_state: Tensor,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `Backend`."""
        ...


class ListInputs(NamedTuple):
    """What both sweeps read, checked before; the lists as `read_teacher` gives them.

    Attributes:
        student_logits: (B, T, >= vocab_size) floating, last stride 1.
        teacher_log_probs: (B, T, K) float64, -inf where there is no id.
        teacher_ids: (B, T, K) int64, negative where there is no id, each id once.
        teacher_tail: (B, T) float64, log of the mass that is not in the list.
        step_ids: (B, T) int64, contiguous, -1 in no step.
        sampled_ids: (B, T) int64, read at rows in a step only; None without.
    """

    student_logits: Tensor
    teacher_log_probs: Tensor
    teacher_ids: Tensor
    teacher_tail: Tensor
    step_ids: Tensor
    sampled_ids: Tensor | None

    def teacher(self, vocab_size: int) -> TeacherList:
        """Put the lists together.

        Args:
            vocab_size: Number of valid columns.

        Returns:
            The lists.
        """
        return TeacherList(self.teacher_log_probs, self.teacher_ids, self.teacher_tail, vocab_size)

    @property
    def ids(self) -> Tensor:
        """All ids to look up, (B, T, K or K + 1): the sampled token goes along as one more."""
        if self.sampled_ids is None:
            return self.teacher_ids
        return torch.cat((self.teacher_ids, self.sampled_ids[..., None]), -1)


def state_width(num_ids: int) -> int:
    """Count the columns of a row state.

    Args:
        num_ids: K of the lists.

    Returns:
        Columns of the row state of `ListSweeps`.
    """
    return _NUM_STATE_COLUMNS + num_ids


def list_stats(
    swept: LogProbStats,
    teacher: TeacherList,
    sampled_ids: Tensor | None,
    step_ids: Tensor,
    num_steps: int,
    spec: DivergenceSpec,
    *,
    tail: str,
    backend: str,
) -> tuple[TokenStats, Tensor]:
    """Compute what comes after the walk: everything per token, and the sums per step.

    Args:
        swept: Log-probabilities of the lists' ids and, behind them, of the sampled ones; with its graph.
        teacher: The lists.
        sampled_ids: Leading shape int64, or None.
        step_ids: Leading shape, -1 in no step.
        num_steps: S.
        spec: What to compute.
        tail: As in `topk_step_kl`.
        backend: Name of the one that swept; the native library compares on the CPU, outside compiled code.

    Returns:
        Statistics in the leading shape, with the sweep's row state; autograd goes on through them to `swept`.
        And the slopes of `token_kl` in the log-probabilities of the ids, (..., K) float64.
    """
    is_native = backend == "native" and can_look(swept.log_probs)
    compare = lists.compare_lists if is_native else _categories.compare_lists
    compared = compare(swept, teacher, sampled_ids, step_ids, num_steps, spec, tail)
    num_ids = teacher.ids.shape[-1]
    token_kl = _categories.with_slopes(compared, swept.log_probs[..., :num_ids])
    has_sampled = sampled_ids is not None
    stats = TokenStats(
        token_kl=token_kl,
        # A tensor each: outputs of a custom op must not share memory.
        token_reference_kl=token_kl.new_empty(0),
        student_log_probs=swept.log_probs[..., num_ids] if has_sampled else token_kl.new_empty(0),
        teacher_log_probs=compared.teacher_log_probs,
        student_entropy=swept.student_entropy,
        row_state=swept.row_state,
        step_sums=compared.step_sums,
    )
    return stats, compared.slopes


class ListSweeps:
    """The sweeps of a backend against lists; called as those of a `Backend` against logits are."""

    def __init__(self, sweeps: LogProbSweeps, tail: str, *, vocab_size: int, backend: str) -> None:
        """Choose the walk and what becomes of the rest of the vocabulary.

        Args:
            sweeps: Of the backend, over the student's logits.
            tail: As in `topk_step_kl`.
            vocab_size: Valid columns of the whole vocabulary, of which the logits may be a shard.
            backend: Name of the one that runs.
        """
        self._sweeps, self._tail, self._vocab_size, self._backend = sweeps, tail, vocab_size, backend

    def forward(self, inputs: ListInputs, num_steps: int, spec: DivergenceSpec) -> TokenStats:
        """Run the forward sweep.

        Args:
            inputs: Logits and lists.
            num_steps: S.
            spec: What to compute.

        Returns:
            The statistics; the row state is (B, T, 2 + K): that of the log-prob sweep, then the slopes.
        """
        swept = self._sweeps.log_probs_forward(_problem(inputs, spec))
        stats, slopes = list_stats(
            swept,
            inputs.teacher(self._vocab_size),
            inputs.sampled_ids,
            inputs.step_ids,
            num_steps,
            spec,
            tail=self._tail,
            backend=self._backend,
        )
        return stats._replace(row_state=torch.cat((swept.row_state, slopes), -1))

    def backward(
        self,
        upstream: TokenGradients,
        inputs: ListInputs,
        row_state: Tensor,
        spec: DivergenceSpec,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Run the backward sweep.

        Args:
            upstream: Gradients of the differentiable outputs.
            inputs: As in `forward`.
            row_state: From `forward`.
            spec: As in `forward`.
            out: Takes the gradient; may be the student's logits. None for a fresh tensor.

        Returns:
            Contiguous gradient of `student_logits`' shape and dtype.
        """
        state, slopes = row_state[..., :_NUM_STATE_COLUMNS], row_state[..., _NUM_STATE_COLUMNS:]
        of_ids = (upstream.token_kl[..., None] * slopes).to(upstream.token_kl.dtype)
        if inputs.sampled_ids is not None:
            of_ids = torch.cat((of_ids, upstream.student_log_probs[..., None]), -1)
        gradients = LogProbGradients(of_ids.contiguous(), upstream.student_entropy.contiguous())
        return self._sweeps.log_probs_backward(gradients, _problem(inputs, spec), state.contiguous(), out=out)


def _problem(inputs: ListInputs, spec: DivergenceSpec) -> LogProbInputs:
    return LogProbInputs(
        inputs.student_logits,
        inputs.step_ids.contiguous(),
        inputs.ids.contiguous(),
        spec.temperature,
        spec.vocab_size,
    )
