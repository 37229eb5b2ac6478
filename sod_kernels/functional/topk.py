"""`topk_step_kl`: from the student's logits and a teacher that gave its top-k log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels import _categories, _dispatch
from sod_kernels._checks import arguments, topk, weightings
from sod_kernels._checks.values import check_choice
from sod_kernels._layout import StepLayout, resolve_layout
from sod_kernels.functional.log_probs import sweep
from sod_kernels.functional.output import finish
from sod_kernels.segments import step_sums
from sod_kernels.types import DivergenceSpec, StepKLOutput, StepStatistics, TokenStats

_NAME = "topk_step_kl"


def topk_step_kl(
    student_logits: Tensor,
    teacher_log_probs: Tensor,
    teacher_ids: Tensor,
    step_ids: Tensor | None = None,
    *,
    tail: str = "bucket",
    response_mask: Tensor | None = None,
    sampled_ids: Tensor | None = None,
    step_trajectory: Tensor | None = None,
    num_steps: int | None = None,
    divergence: str = "reverse_kl",
    beta: float | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    min_log_prob: float | None = None,
    step_divergence: str = "kl",
    weighting: Tensor | Callable[[StepStatistics], Tensor] | None = None,
    token_weights: Tensor | None = None,
    reduction: str = "token_mean",
    denominator: float | Tensor | None = None,
    backend: str = "auto",
) -> StepKLOutput:
    r"""Compute `step_kl` against a teacher that gave log-probabilities of K ids per token only.

    With :math:`p = \mathrm{softmax}(z_s / \tau)` of the student, :math:`q` of the teacher, :math:`L` the
    listed ids and :math:`p_* = 1 - \sum_{v \in L} p_v`, :math:`q_*` likewise, `tail` says what becomes of
    the rest of the vocabulary:

    - "bucket": one more category, :math:`D = \sum_{v \in L} p_v \log(p_v / q_v) + p_* \log(p_* / q_*)`.
      Never negative, at most the divergence over the whole vocabulary, growing towards it with K, and equal
      to it where every id is listed.
    - "renormalise": both sides given that the token is listed; blind to the student's mass elsewhere. +inf,
      without gradient, where a side has no mass on the list.
    - "drop": :math:`\sum_{v \in L} p_v \log(p_v / q_v)` as it stands, which may be negative.

    The other divergences run over the same categories. A mass :math:`p_*` or :math:`q_*` below the rounding
    unit of its numbers' dtype counts as that unit. One sweep over the student's logits gives everything, one
    more the gradient; the rest is arithmetic on K + 1 numbers per token.

    Args:
        student_logits: (N, V) packed or (B, T, V) padded, as in `step_kl`.
        teacher_log_probs: (N, K) or (B, T, K) floating, in nats and in any order: of the teacher's softmax
            over its whole vocabulary, at the temperature that it was computed with. A listed -inf is a
            probability of 0. No gradient.
        teacher_ids: Same shape, integer. A negative id is absent, so lists may have different lengths; a
            token without any has divergence 0. Of an id that occurs several times, as when a server appends
            the sampled token, the entry with the largest log-probability counts.
        step_ids: Step of each token, as in `step_kl`, like every argument that is not explained here.
        tail: "bucket", "renormalise" or "drop".
        response_mask: In place of step ids.
        sampled_ids: Token sampled at each position; gives the log-probabilities. The teacher's is that of
            the list; for a token outside the list it is that of the whole tail, an upper bound.
        step_trajectory: (S,) trajectory of each step.
        num_steps: S.
        divergence: "reverse_kl", "forward_kl" or "jsd".
        beta: Weight of the teacher in [0, 1], for "jsd" only; None means 0.5.
        temperature: Divides the student's logits alone.
        vocab_size: Valid columns of the student; None for all.
        min_log_prob: Floor in nats under the log-probabilities that a KL divides by, the tail's too.
        step_divergence: "kl" or "abs_log_ratio"; the latter needs every sampled token in the list.
        weighting: Step weights. `SodWeighting` takes no negative divergence, which "drop" may give.
        token_weights: Weight of each token.
        reduction: "none", "sum", "token_mean", "step_mean" or "sequence_mean".
        denominator: In place of the last division of a mean.
        backend: "auto", "reference", "native" or "triton".

    Returns:
        As `step_kl`, with `token_kl` over the categories, log-probabilities and entropy over the vocabulary.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, value or combination is wrong.
        BackendUnavailableError: If the backend cannot run here.

    Source:
        Own derivation, docs/math.md: coarse-graining both sides by the same partition.
    """
    width = arguments.check_logits(_NAME, student_logits, {}, vocab_size)
    topk.check_teacher_list(_NAME, teacher_log_probs, teacher_ids, student_logits)
    check_choice(_NAME, "tail", tail, _categories.TAILS)
    kind, weight = arguments.check_divergence(_NAME, divergence, beta, temperature, min_log_prob)
    arguments.check_options(_NAME, step_divergence, reduction, backend)
    weightings.check_weighting(_NAME, weighting, may_be_tensor=True)
    layout = resolve_layout(
        _NAME,
        student_logits,
        step_ids=step_ids,
        response_mask=response_mask,
        step_trajectory=step_trajectory,
        num_steps=num_steps,
        weighting=weighting,
    )
    ids = layout.step_ids
    arguments.check_sampled_ids(_NAME, sampled_ids, ids, vocab_size=width, step_divergence=step_divergence)
    arguments.check_loss_arguments(_NAME, token_weights, denominator, reduction=reduction, like=ids)
    backend_name = _dispatch.resolve(
        backend, student_logits.device.type, student_logits.dtype, function=_NAME
    )
    spec = DivergenceSpec(
        divergence=kind, beta=weight, temperature=temperature, vocab_size=width, min_log_prob=min_log_prob
    )
    teacher = _read_teacher(teacher_log_probs, teacher_ids, ids, width)
    sampled = None if sampled_ids is None else sampled_ids.detach().to(torch.int64)
    if sampled is not None and step_divergence == "abs_log_ratio":
        topk.check_sampled_are_listed(_NAME, sampled, _categories.is_listed(teacher, sampled), ids >= 0)
    inputs = _Inputs(student_logits, teacher, sampled, layout)
    return finish(
        _NAME,
        _token_stats(inputs, spec, tail, backend_name),
        layout,
        has_sampled=sampled is not None,
        has_reference=False,
        step_divergence=step_divergence,
        weighting=weighting,
        token_weights=token_weights,
        reduction=reduction,
        denominator=denominator,
        backend=backend_name,
    )


class _Inputs(NamedTuple):
    """What the token statistics are made from, checked."""

    student_logits: Tensor
    teacher: _categories.TeacherList
    sampled_ids: Tensor | None
    layout: StepLayout


def _read_teacher(log_probs: Tensor, ids: Tensor, step_ids: Tensor, width: int) -> _categories.TeacherList:
    is_active = step_ids >= 0
    topk.check_teacher_ids(_NAME, ids, is_active, width)
    teacher = _categories.read_teacher(log_probs, ids, is_active, width)
    topk.check_teacher_mass(_NAME, teacher.log_probs, teacher.is_there)
    return teacher


def _token_stats(inputs: _Inputs, spec: DivergenceSpec, tail: str, backend: str) -> TokenStats:
    """Run the sweep and everything that comes after it per token, in the caller's leading shape."""
    teacher, sampled, step_ids = inputs.teacher, inputs.sampled_ids, inputs.layout.step_ids
    # The sampled token goes along as one more id.
    ids = teacher.ids if sampled is None else torch.cat((teacher.ids, sampled[..., None]), -1)
    swept = sweep(
        inputs.student_logits,
        step_ids,
        ids,
        temperature=spec.temperature,
        vocab_size=spec.vocab_size,
        backend=backend,
    )
    dtype, num_ids = swept.log_probs.dtype, teacher.ids.shape[-1]
    categories, is_void = _categories.make_categories(
        swept.log_probs[..., :num_ids].double(), teacher, tail, torch.finfo(dtype).eps
    )
    value = _categories.divergence(categories, spec)
    value = value if tail == "drop" else _categories.reported(value)
    token_kl = torch.where(is_void, torch.inf, value).to(dtype)
    log_probs = teacher_log_probs = token_kl.new_empty(0)
    if sampled is not None:
        log_probs = swept.log_probs[..., num_ids]
        teacher_log_probs = _categories.teacher_log_probs(teacher, sampled, spec).to(dtype)
    return TokenStats(
        token_kl=token_kl,
        token_reference_kl=token_kl.new_empty(0),
        student_log_probs=log_probs,
        teacher_log_probs=teacher_log_probs,
        student_entropy=swept.student_entropy,
        row_state=swept.row_state,
        step_sums=step_sums(
            token_kl,
            swept.student_entropy,
            None if sampled is None else (log_probs, teacher_log_probs),
            step_ids,
            inputs.layout.num_steps,
        ),
    )
