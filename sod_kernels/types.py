"""The values that go in and out of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from torch import Tensor

from sod_kernels.unit_types import UnitGradients, UnitInputs, UnitStats


@dataclass(frozen=True, kw_only=True)
class DivergenceSpec:
    """What one forward or backward sweep computes, checked before a backend sees it.

    Attributes:
        divergence: "reverse_kl" (student to teacher), "forward_kl" (teacher to student) or "jsd".
        beta: Weight of the teacher in the mixture of "jsd", strictly between 0 and 1; not read otherwise.
        temperature: Divides both logits, above 0.
        vocab_size: Valid columns; columns at and beyond it are never read and get zero gradient.
        min_log_prob: Floor, in nats, under the log-probabilities that a KL divides by; None for no floor.
    """

    divergence: str
    beta: float
    temperature: float
    vocab_size: int
    min_log_prob: float | None


class TokenInputs(NamedTuple):
    """What both sweeps read, checked before a backend sees it.

    Attributes:
        student_logits: (B, T, >= vocab_size) floating, last stride 1.
        teacher_logits: (B, T, >= vocab_size), same dtype and device, last stride 1.
        reference_logits: (B, T, >= vocab_size) of the frozen reference policy, same dtype and device, last
            stride 1; None without.
        step_ids: (B, T) int64, contiguous, -1 in no step.
        sampled_ids: (B, T) int64, contiguous, read at rows in a step only; None without. For the backward
            sweep a negative id there is a token of another shard of the vocabulary: its log-probability
            counts, but none of these columns is it.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    reference_logits: Tensor | None
    step_ids: Tensor
    sampled_ids: Tensor | None


class RowState(IntEnum):
    """Columns of `TokenStats.row_state`: what the backward sweep and a merge of vocabulary shards need.

    In float64 whatever the logits' dtype, so that the backward sweep subtracts exactly what the forward sweep
    measured. For logits over temperature; a log-sum-exp is -inf where all columns are, as those of one shard
    of the vocabulary may be:

    Attributes:
        STUDENT_LSE: Log-sum-exp of the student.
        STUDENT_ENTROPY: Entropy of the student.
        TEACHER_LSE: Log-sum-exp of the teacher.
        DIVERGENCE: The divergence, not clamped; +inf tells the backward sweep that it has no gradient.
        AUX: E_p[f] of the gradient p (f - E_p[f]): the divergence itself for the reverse KL, (1 - beta)
            KL(student || m) for the JSD; for the forward KL the share of the teacher's mass on entries where
            the student lies above the floor.
        REFERENCE_LSE: Log-sum-exp of the reference; 0 without.
        REFERENCE_KL: KL(student || reference), not clamped; 0 without.
    """

    STUDENT_LSE = 0
    STUDENT_ENTROPY = 1
    TEACHER_LSE = 2
    DIVERGENCE = 3
    AUX = 4
    REFERENCE_LSE = 5
    REFERENCE_KL = 6


class TokenStats(NamedTuple):
    """What one forward sweep gives; (B, T) float32 (float64 for float64 logits), 0 at rows in no step.

    `token_reference_kl` has shape (0,) without a reference, `student_log_probs` and `teacher_log_probs`
    without sampled ids. `row_state` is (B, T, len(RowState)) float64. `step_sums` is (S, 5) float64: tokens,
    sum of token_kl, sum of |student - teacher| sampled log-ratio, sum of -student_log_probs, sum of
    student_entropy.
    """

    token_kl: Tensor
    token_reference_kl: Tensor
    student_log_probs: Tensor
    teacher_log_probs: Tensor
    student_entropy: Tensor
    row_state: Tensor
    step_sums: Tensor


class TokenGradients(NamedTuple):
    """Upstream gradients of a forward sweep's outputs; (B, T) contiguous, in the outputs' dtype.

    `token_reference_kl` has shape (0,) without a reference, `student_log_probs` without sampled ids.
    """

    token_kl: Tensor
    token_reference_kl: Tensor
    student_log_probs: Tensor
    student_entropy: Tensor


class LogProbInputs(NamedTuple):
    """What the two log-prob sweeps read, checked before a backend sees it: the student alone.

    Attributes:
        student_logits: (B, T, >= vocab_size) floating, last stride 1.
        step_ids: (B, T) int64, contiguous, -1 in no step.
        ids: (B, T, K) int64, contiguous; a negative id is absent. Rows in no step are not read.
        temperature: Divides the logits, above 0.
        vocab_size: Valid columns; columns at and beyond it are never read and get zero gradient.
    """

    student_logits: Tensor
    step_ids: Tensor
    ids: Tensor
    temperature: float
    vocab_size: int


class LogProbStats(NamedTuple):
    """What the log-prob forward sweep gives; 0 at rows in no step.

    `log_probs` is (B, T, K), 0 at absent ids, and `student_entropy` (B, T), both float32 (float64 for float64
    logits). `row_state` is (B, T, 2) float64, for logits over temperature: log-sum-exp and entropy, columns
    `RowState.STUDENT_LSE` and `RowState.STUDENT_ENTROPY`.
    """

    log_probs: Tensor
    student_entropy: Tensor
    row_state: Tensor


class LogProbGradients(NamedTuple):
    """Upstream gradients of the log-prob sweep's outputs, contiguous, in the outputs' dtype.

    `log_probs` is (B, T, K), anything at absent ids; an id that occurs twice gets both. `student_entropy` is
    (B, T).
    """

    log_probs: Tensor
    student_entropy: Tensor


class Backend(Protocol):
    """What a backend module exposes. Everything is checked before it is called; no input is empty."""

    def availability(self, device_type: str) -> str | None:
        """Say why the backend cannot run on a kind of device, as a sentence; None if it can."""
        ...

    def forward(self, inputs: TokenInputs, num_steps: int, spec: DivergenceSpec) -> TokenStats:
        """Run the forward sweep over S = num_steps steps."""
        ...

    def backward(
        self,
        upstream: TokenGradients,
        inputs: TokenInputs,
        row_state: Tensor,
        spec: DivergenceSpec,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Run the backward sweep with the forward's row state; the gradient of the student's logits.

        The logits may be a shard of the columns and the row state that of the whole rows, merged.

        `out` takes the gradient, contiguous, in place of a fresh tensor; it may be the student's logits.
        """
        ...

    def forward_backward(
        self,
        upstream: TokenGradients,
        inputs: TokenInputs,
        num_steps: int,
        spec: DivergenceSpec,
        *,
        out: Tensor | None = None,
    ) -> tuple[TokenStats, Tensor]:
        """Run both sweeps where the gradients of the outputs are known before.

        What comes out equals what two sweeps give, bit by bit or (native on CUDA) within rounding. A backend
        that can do so visits each row once, and makes its gradient while its logits are at hand. Of
        `upstream` only `token_kl` and `token_reference_kl` are other than 0. `out` as in `backward`.
        """
        ...

    def log_probs_forward(self, inputs: LogProbInputs) -> LogProbStats:
        """Run the forward sweep over the student alone: log-probabilities of K ids per row, and entropy."""
        ...

    def log_probs_backward(
        self,
        upstream: LogProbGradients,
        inputs: LogProbInputs,
        row_state: Tensor,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Run its backward sweep; `out` as in `backward`."""
        ...

    def unit_forward(self, inputs: UnitInputs, spec: DivergenceSpec) -> UnitStats:
        """Run the forward sweep over units; the vocabulary of the spec is that of the shared columns."""
        ...

    def unit_backward(
        self,
        upstream: UnitGradients,
        inputs: UnitInputs,
        unit_state: Tensor,
        spec: DivergenceSpec,
        vocab_size: int,
    ) -> Tensor:
        """Run its backward sweep; the gradient of the student's logits, of `vocab_size` valid columns."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepStatistics:
    """Per-step statistics that a weighting reads; (S,) each, detached, nats.

    A step without tokens has 0 everywhere and takes no part in any anchor or range.

    Attributes:
        divergence: Mean over the step's tokens of the chosen step divergence.
        uncertainty: Mean sampled negative log-likelihood of the student where sampled ids were given,
            otherwise mean entropy of the student.
        entropy: Mean entropy of the student, sampled ids or not.
        tokens: Number of tokens, integer.
        trajectory: Trajectory of each step, integer.
    """

    divergence: Tensor
    uncertainty: Tensor
    entropy: Tensor
    tokens: Tensor
    trajectory: Tensor


@dataclass(frozen=True, kw_only=True)
class StepKLOutput:
    """Result of `step_kl`; token tensors have the leading shape of the logits, step tensors (S,).

    Attributes:
        loss: Scalar, or the leading shape with reduction "none". Differentiable.
        token_kl: Divergence per token in nats, unweighted, 0 outside steps. Differentiable.
        token_reference_kl: KL(student || reference) per token, likewise; None without a reference.
            Differentiable.
        student_entropy: Entropy of the student per token in nats. Differentiable.
        step_divergence: Mean step divergence, detached.
        step_weights: Weights that were applied, detached.
        step_tokens: Number of tokens per step, int64.
        student_log_probs: Log-probability of the sampled id, None without `sampled_ids`. Differentiable.
        teacher_log_probs: The teacher's, None without `sampled_ids`. Detached.
        backend: Name of the backend that ran.
    """

    loss: Tensor
    token_kl: Tensor
    student_entropy: Tensor
    step_divergence: Tensor
    step_weights: Tensor
    step_tokens: Tensor
    token_reference_kl: Tensor | None
    student_log_probs: Tensor | None
    teacher_log_probs: Tensor | None
    backend: str
