"""`linear_topk_step_kl`: from the student's hidden states and head, and a teacher that gave its top-k."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sod_kernels._categories import TAILS
from sod_kernels._checks import topk
from sod_kernels._checks.values import check_choice
from sod_kernels.functional.chunked import ChunkOptions, resolve_heads, resolve_steps, run
from sod_kernels.functional.options import Options, Weighting
from sod_kernels.functional.topk import read_lists
from sod_kernels.linear.heads import Head
from sod_kernels.linear.policy import PolicyGradient
from sod_kernels.types import StepKLOutput

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NAME = "linear_topk_step_kl"


def linear_topk_step_kl(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_log_probs: Tensor,
    teacher_ids: Tensor,
    step_ids: Tensor | None = None,
    *,
    tail: str = "bucket",
    student_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    student_softcap: float | None = None,
    policy_gradient: PolicyGradient | None = None,
    kl_coefficient: float = 1.0,
    entropy_coefficient: float = 0.0,
    single_sweep: bool = True,
    chunk_size: int | None = None,
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
    r"""Compute `topk_step_kl` from hidden states and output head, without holding the logits of the batch.

    With :math:`z = \mathrm{cap}(\mathrm{scale} \cdot h W^T + b)` as in `linear_step_kl`, and :math:`D_n`
    the divergence over the teacher's categories as in `topk_step_kl`:

    .. math:: L = \frac{1}{Z} \sum_n v_n \left( c_{kl} w_{k(n)} D_n + P_n - c_{H} H_n \right)

    Chunks, the single sweep and what a weighting needs for it are those of `linear_step_kl`: the student's
    head is multiplied once per row in each direction, nothing of size (N, V) is made, and the slope of
    :math:`D_n` in the K log-probabilities is known as soon as a chunk has been walked over.

    Args:
        student_hidden: (N, H) packed or (B, T, H) padded, as in `linear_step_kl`.
        student_weight: (V, H) of the same dtype; its gradient, like that of hidden states and bias, is
            computed only if it requires one.
        teacher_log_probs: (N, K) or (B, T, K) floating, in nats, as in `topk_step_kl`; where the hidden
            states are. No gradient.
        teacher_ids: Same shape, integer, each below `vocab_size`; a negative id is absent.
        step_ids: As in `linear_step_kl`: with CUDA tensors best given on the CPU.
        tail: "bucket", "renormalise" or "drop", as in `topk_step_kl`.
        student_bias: (V,) or None.
        student_logit_scale: Factor of the product, above 0.
        student_softcap: Bound of the logits, above 0, or None.
        policy_gradient: As in `linear_step_kl`; needs `sampled_ids`.
        kl_coefficient: Factor of the divergence in the loss, at least 0.
        entropy_coefficient: Factor of the entropy that the loss rewards.
        single_sweep: Whether the loss alone is differentiable, in a single sweep. False: `loss`, `token_kl`,
            `student_log_probs` and `student_entropy` are, with any upstream gradient; a second sweep projects
            the logits again, and K + 2 numbers per token are kept for it.
        chunk_size: As in `linear_step_kl`.
        response_mask: As in `step_kl`; where step ids may be.
        sampled_ids: As in `topk_step_kl`; where the hidden states are.
        step_trajectory: As in `step_kl`; where the step ids are.
        num_steps: As in `step_kl`.
        divergence: As in `step_kl`.
        beta: As in `step_kl`.
        temperature: Divides the student's logits alone.
        vocab_size: Valid rows of the weight; those beyond are not multiplied and get zero gradient. None:
            all.
        min_log_prob: As in `topk_step_kl`.
        step_divergence: As in `topk_step_kl`.
        weighting: As in `linear_step_kl`. `SodWeighting` takes no negative divergence, which "drop" may give.
        token_weights: As in `step_kl`.
        reduction: As in `step_kl`; "none" only without a single sweep.
        denominator: As in `step_kl`.
        process_group: For a vocabulary-parallel head, as in `linear_step_kl`; the lists are the same on every
            rank and their ids count in the whole vocabulary.
        backend: As in `step_kl`: what runs on the chunks' logits.

    Returns:
        As of `topk_step_kl`; in a single sweep everything but `loss` is detached.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, value or combination is wrong.
        BackendUnavailableError: If the backend cannot run here.

    Source:
        Own derivation, docs/math.md: the categories' slopes put into the single sweep.
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
    chunks = ChunkOptions(
        policy_gradient=policy_gradient,
        kl_coefficient=kl_coefficient,
        entropy_coefficient=entropy_coefficient,
        single_sweep=single_sweep,
        chunk_size=chunk_size,
    )
    chunks.check(options)
    check_choice(_NAME, "tail", tail, TAILS)
    head = Head(student_hidden, student_weight, student_bias, student_logit_scale, student_softcap)
    shard = resolve_heads(_NAME, {"student": head}, vocab_size, process_group)
    width = shard.vocab_size
    topk.check_teacher_list(_NAME, teacher_log_probs, teacher_ids, student_hidden=student_hidden)
    steps = resolve_steps(
        options,
        student_hidden,
        step_ids=step_ids,
        response_mask=response_mask,
        step_trajectory=step_trajectory,
        num_steps=num_steps,
    )
    options.check_tokens(steps.ids, sampled_ids, vocab_size=width)
    sampled = None if sampled_ids is None else sampled_ids.detach().to(torch.int64)
    dtype = torch.promote_types(student_hidden.dtype, torch.float32)
    lists = read_lists(
        options,
        teacher_log_probs,
        teacher_ids,
        steps.ids,
        sampled,
        vocab_size=width,
        backend=options.resolve_backend(steps.ids, dtype),
    )
    return run(options, chunks, {"student": head}, steps, sampled, shard, lists=lists, tail=tail)
