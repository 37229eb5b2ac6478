"""What the ops from hidden states take, by name and in the order of their schemas."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels import _list_sweeps
from sod_kernels.linear.heads import Head
from sod_kernels.types import DivergenceSpec, RowState


class Heads(NamedTuple):
    """The heads of all models; the teacher is None where it is known by lists or not at all.

    The reference is None without one.
    """

    student: Head
    teacher: Head | None
    reference: Head | None


class LinearInputs(NamedTuple):
    """Tensors that both sweeps read, checked before.

    Attributes:
        student_hidden: (N, H), as `teacher_hidden` and `reference_hidden`, each of its own width.
        student_weight: (>= vocab_size, H), likewise.
        student_bias: (>= vocab_size,) or None, likewise.
        teacher_hidden: See above; None where the teacher is known by lists, or the student measured alone.
        teacher_weight: See above.
        teacher_bias: See above.
        reference_hidden: None without a reference.
        reference_weight: None without a reference.
        reference_bias: See above.
        step_ids: (N,) int64, -1 in no step; on the CPU, or where the hidden states are.
        sampled_ids: (N,) int64 where the hidden states are, or None.
        teacher_log_probs: (N, K) float64 as `read_teacher` gives them; None where the teacher has a head.
        teacher_ids: (N, K) int64, likewise.
        teacher_tail: (N,) float64, likewise.
    """

    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor | None
    teacher_hidden: Tensor | None
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    reference_hidden: Tensor | None
    reference_weight: Tensor | None
    reference_bias: Tensor | None
    step_ids: Tensor
    sampled_ids: Tensor | None
    teacher_log_probs: Tensor | None = None
    teacher_ids: Tensor | None = None
    teacher_tail: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of chunk logits and outputs: float64 if any input has it, else float32."""
        wide = (tensor.dtype for tensor in self[:9] if tensor is not None)
        return torch.float64 if torch.float64 in wide else torch.float32

    @property
    def has_target(self) -> bool:
        """Whether the student is held against anything, rather than measured alone."""
        return self.teacher_hidden is not None or self.teacher_ids is not None

    @property
    def state_width(self) -> int:
        """Columns of the row state."""
        if self.teacher_hidden is not None:
            return len(RowState)
        return _list_sweeps.state_width(0 if self.teacher_ids is None else self.teacher_ids.shape[-1])


class LinearOptions(NamedTuple):
    """Numbers and names that both sweeps read.

    Attributes:
        num_steps: S.
        student_scale: Factor of the student's product, as those of the others.
        teacher_scale: See above.
        reference_scale: See above.
        student_softcap: Bound of the student's logits or None, as those of the others.
        teacher_softcap: See above.
        reference_softcap: See above.
        divergence: As in `DivergenceSpec`, as the next four.
        beta: See above.
        temperature: See above.
        vocab_size: See above.
        min_log_prob: See above.
        chunk_size: Most rows of a chunk; 0 for the default.
        backend: Name of the backend.
        tail: As in `topk_step_kl` where the teacher is known by lists; None otherwise.
        group: Name of the process group over which the heads' rows are sharded; None without one.
        first_column: Number of this shard's first column in the whole vocabulary.
        total_columns: Valid columns of the whole vocabulary, of which `vocab_size` are on this rank.
        function: Name of the function that was called, for messages.
    """

    num_steps: int
    student_scale: float
    teacher_scale: float
    reference_scale: float
    student_softcap: float | None
    teacher_softcap: float | None
    reference_softcap: float | None
    divergence: str
    beta: float
    temperature: float
    vocab_size: int
    min_log_prob: float | None
    chunk_size: int
    backend: str
    tail: str | None = None
    group: str | None = None
    first_column: int = 0
    total_columns: int = 0
    function: str = "linear_step_kl"

    @property
    def spec(self) -> DivergenceSpec:
        """What a backend computes."""
        return DivergenceSpec(
            divergence=self.divergence,
            beta=self.beta,
            temperature=self.temperature,
            vocab_size=self.vocab_size,
            min_log_prob=self.min_log_prob,
        )


class Objective(NamedTuple):
    """What the single sweep makes a loss of, besides the inputs and options.

    Attributes:
        step_trajectory: (S,) integer, where the step ids are.
        step_weights: (S,) where they are known beforehand, or None.
        token_weights: (N,) or None.
        denominator: Scalar tensor or None.
        advantages: (N,) or None for no policy term.
        old_log_probs: (N,), None without advantages.
        weighting: Key of a causal weighting that was registered, 0 for none.
        delta: Of `SodWeighting`, None for another weighting.
        epsilon: Of `SodWeighting`, None for another weighting.
        clip_low: Of `PolicyGradient`.
        clip_high: Of `PolicyGradient`.
        dual_clip: Of `PolicyGradient`.
        kl_coefficient: Of the divergence.
        entropy_coefficient: Of the entropy.
        step_divergence: "kl" or "abs_log_ratio".
        reduction: As in `step_kl`, but not "none".
    """

    step_trajectory: Tensor
    step_weights: Tensor | None
    token_weights: Tensor | None
    denominator: Tensor | None
    advantages: Tensor | None
    old_log_probs: Tensor | None
    weighting: int
    delta: float | None
    epsilon: float | None
    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_coefficient: float
    entropy_coefficient: float
    step_divergence: str
    reduction: str


def make_heads(inputs: LinearInputs, options: LinearOptions) -> Heads:
    """Put together what belongs to each model.

    Args:
        inputs: Tensors.
        options: Scales and softcaps.

    Returns:
        The heads.
    """
    student = Head(
        inputs.student_hidden,
        inputs.student_weight,
        inputs.student_bias,
        options.student_scale,
        options.student_softcap,
    )
    teacher = reference = None
    if inputs.teacher_hidden is not None and inputs.teacher_weight is not None:
        teacher = Head(
            inputs.teacher_hidden,
            inputs.teacher_weight,
            inputs.teacher_bias,
            options.teacher_scale,
            options.teacher_softcap,
        )
    if inputs.reference_hidden is not None and inputs.reference_weight is not None:
        reference = Head(
            inputs.reference_hidden,
            inputs.reference_weight,
            inputs.reference_bias,
            options.reference_scale,
            options.reference_softcap,
        )
    return Heads(student, teacher, reference)
