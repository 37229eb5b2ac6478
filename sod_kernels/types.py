"""The values that go in and out of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


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


class TokenStats(NamedTuple):
    """What one forward sweep gives; (B, T) float32 (float64 for float64 logits), 0 at rows in no step.

    `student_log_probs` and `teacher_log_probs` have shape (0,) without sampled ids. `kl_aux` is what the
    backward sweep needs besides the log-sum-exps. `step_sums` is (S, 5) float64: tokens, sum of token_kl,
    sum of |student - teacher| sampled log-ratio, sum of -student_log_probs, sum of student_entropy.
    """

    token_kl: Tensor
    student_log_probs: Tensor
    teacher_log_probs: Tensor
    student_entropy: Tensor
    student_lse: Tensor
    teacher_lse: Tensor
    kl_aux: Tensor
    step_sums: Tensor


class Backend(Protocol):
    """What a backend module exposes.

    Everything is checked before a backend is called: logits (B, T, >= vocab_size) of one floating dtype on
    one device with last stride 1, step and sampled ids (B, T) int64 contiguous, upstream gradients contiguous
    in the backend's output dtype ((0,) for the log-probs without sampled ids), at least one token and one
    step.
    """

    def availability(self, device_type: str) -> str | None:
        """Say why the backend cannot run on a kind of device, as a sentence; None if it can."""
        ...

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        step_ids: Tensor,
        sampled_ids: Tensor | None,
        num_steps: int,
        spec: DivergenceSpec,
    ) -> TokenStats:
        """Run the forward sweep."""
        ...

    def backward(
        self,
        grad_token_kl: Tensor,
        grad_student_log_probs: Tensor,
        grad_student_entropy: Tensor,
        student_logits: Tensor,
        teacher_logits: Tensor,
        step_ids: Tensor,
        sampled_ids: Tensor | None,
        student_lse: Tensor,
        teacher_lse: Tensor,
        kl_aux: Tensor,
        student_entropy: Tensor,
        spec: DivergenceSpec,
    ) -> Tensor:
        """Run the backward sweep."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepStatistics:
    """Per-step statistics that a weighting reads; (S,) each, detached, nats.

    A step without tokens has 0 everywhere and takes no part in any anchor or range.

    Attributes:
        divergence: Mean over the step's tokens of the chosen step divergence.
        uncertainty: Mean sampled negative log-likelihood of the student where sampled ids were given,
            otherwise mean entropy of the student.
        tokens: Number of tokens, integer.
        trajectory: Trajectory of each step, integer.
    """

    divergence: Tensor
    uncertainty: Tensor
    tokens: Tensor
    trajectory: Tensor


@dataclass(frozen=True, kw_only=True)
class StepKLOutput:
    """Result of `step_kl`; token tensors have the leading shape of the logits, step tensors (S,).

    Attributes:
        loss: Scalar, or the leading shape with reduction "none". Differentiable.
        token_kl: Divergence per token in nats, unweighted, 0 outside steps. Differentiable.
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
    student_log_probs: Tensor | None
    teacher_log_probs: Tensor | None
    backend: str
