"""`topk_step_kl`: from the student's logits and a teacher that gave its top-k log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sod_kernels import _categories, _parallel
from sod_kernels._checks import topk
from sod_kernels._checks.values import can_look, check_choice
from sod_kernels._layout import resolve_layout
from sod_kernels._list_sweeps import list_stats
from sod_kernels.functional.log_probs import sweep
from sod_kernels.functional.options import Options, Weighting
from sod_kernels.functional.output import finish
from sod_kernels.native import lists
from sod_kernels.types import StepKLOutput

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

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
    weighting: Weighting = None,
    token_weights: Tensor | None = None,
    reduction: str = "token_mean",
    denominator: float | Tensor | None = None,
    process_group: ProcessGroup | None = None,
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
        process_group: For vocabulary-parallel logits of the student, as in `step_kl`. The lists are the same
            on every rank and their ids count in the whole vocabulary; K + 3 numbers per token are exchanged
            forward and nothing backward.
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
    options = Options(
        function=_NAME,
        divergence=divergence,
        beta=beta,
        temperature=temperature,
        min_log_prob=min_log_prob,
        step_divergence=step_divergence,
        weighting=weighting,
        token_weights=token_weights,
        reduction=reduction,
        denominator=denominator,
        backend=backend,
    )
    check_choice(_NAME, "tail", tail, _categories.TAILS)
    shard = _parallel.resolve_shard(_NAME, student_logits, {}, vocab_size, process_group)
    width = shard.vocab_size
    topk.check_teacher_list(_NAME, teacher_log_probs, teacher_ids, student_logits=student_logits)
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
    options.check_tokens(ids, sampled_ids, vocab_size=width)
    backend_name = options.resolve_backend(student_logits, student_logits.dtype)
    sampled = None if sampled_ids is None else sampled_ids.detach().to(torch.int64)
    teacher = read_lists(
        options, teacher_log_probs, teacher_ids, ids, sampled, vocab_size=width, backend=backend_name
    )
    swept = sweep(
        student_logits,
        ids,
        # The sampled token goes along as one more id.
        teacher.ids if sampled is None else torch.cat((teacher.ids, sampled[..., None]), -1),
        temperature=temperature,
        shard=shard,
        backend=backend_name,
        function=_NAME,
    )
    spec = options.spec(width)
    stats, _ = list_stats(
        swept, teacher, sampled, ids, layout.num_steps, spec, tail=tail, backend=backend_name
    )
    return finish(
        stats,
        layout,
        options,
        has_sampled=sampled is not None,
        has_reference=False,
        backend=backend_name,
    )


def read_lists(
    options: Options,
    log_probs: Tensor,
    ids: Tensor,
    step_ids: Tensor,
    sampled_ids: Tensor | None,
    *,
    vocab_size: int,
    backend: str,
) -> _categories.TeacherList:
    """Read what a teacher gave, and refuse what it cannot have meant.

    Args:
        options: Function and step divergence are read.
        log_probs: (..., K) floating, checked for shape and dtype.
        ids: (..., K) integer, likewise.
        step_ids: (...) int64, -1 in no step.
        sampled_ids: (...) int64 or None.
        vocab_size: Number of valid columns.
        backend: Name of the one that runs; the native library reads on the CPU, outside compiled code.

    Returns:
        The lists.

    Raises:
        ValueError: If an id or a log-probability is out of range, or a sampled token is missing that is
            needed; on other devices than the CPU ids fail a device-side assertion.
    """
    teacher = None
    if backend == "native" and can_look(ids):
        teacher = lists.read_lists(log_probs, ids, step_ids, vocab_size=vocab_size, most_mass=topk.MOST_MASS)
    if teacher is None:
        teacher = _read_with_torch(options, log_probs, ids, step_ids, vocab_size)
    if sampled_ids is not None and options.step_divergence == "abs_log_ratio":
        is_listed = _categories.is_listed(teacher, sampled_ids)
        topk.check_sampled_are_listed(options.function, sampled_ids, is_listed, step_ids >= 0)
    return teacher


def _read_with_torch(
    options: Options, log_probs: Tensor, ids: Tensor, step_ids: Tensor, vocab_size: int
) -> _categories.TeacherList:
    """Read, and say what is wrong with the lists if anything is."""
    listed = _categories.listed_ids(ids, step_ids >= 0)
    topk.check_teacher_ids(options.function, listed, vocab_size)
    teacher, mass = _categories.read_teacher(log_probs, listed, vocab_size)
    topk.check_teacher_mass(options.function, teacher.log_probs, mass)
    return teacher
