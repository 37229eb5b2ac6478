"""`linear_step_kl`: from hidden states and output heads. Check, plan, sweep, weigh, reduce."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sod_kernels._checks import hidden as checks
from sod_kernels.functional.chunked import ChunkOptions, resolve_heads, resolve_steps, run
from sod_kernels.functional.options import Options, Weighting
from sod_kernels.linear.heads import Head
from sod_kernels.linear.policy import PolicyGradient
from sod_kernels.types import StepKLOutput

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NAME = "linear_step_kl"


def linear_step_kl(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    step_ids: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    reference_hidden: Tensor | None = None,
    reference_weight: Tensor | None = None,
    reference_bias: Tensor | None = None,
    reference_logit_scale: float = 1.0,
    reference_softcap: float | None = None,
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
    r"""Compute `step_kl` from hidden states and output heads, without holding the logits of the batch.

    With :math:`z = \mathrm{cap}(\mathrm{scale} \cdot h W^T + b)`,
    :math:`\mathrm{cap}(x) = \mathrm{softcap} \tanh(x / \mathrm{softcap})`, of either model, and
    :math:`D_n, w_k, v_n, Z` as in `step_kl`:

    .. math:: L = \frac{1}{Z} \sum_n v_n \left( c_{kl} w_{k(n)} D_n + P_n - c_{H} H_n \right)

    where :math:`P_n` is the clipped policy-gradient term and :math:`H_n` the student's entropy; with a
    reference :math:`w_k D_n + \max(0, 1 - w_k) \mathrm{KL}(p_n \| r_n)` takes the place of :math:`w_k D_n`.
    Step weights apply to the divergence only, token weights to everything.

    Rows are walked in chunks whose logits, in float32 even for bfloat16 inputs, live in buffers that are used
    again; rows in no step are not projected. In a *single sweep* the gradients of `loss` are made on the way
    and nothing is projected twice. That needs weights that are known when a step is complete: None, a tensor,
    `SodWeighting`, or a function with an attribute ``is_causal = True``, which promises that a step's weight
    reads that step and earlier ones of its trajectory (later steps come without tokens). For any other
    weighting, and in compiled code for any function but `SodWeighting`, the heads are multiplied once more in
    the backward pass.

    Args:
        student_hidden: (N, H) packed or (B, T, H) padded; float64, float32, bfloat16 or float16.
        student_weight: (V, H) as in `torch.nn.Linear`, of the same dtype. A gradient is computed for each of
            hidden states, weight and bias only if that one requires it.
        teacher_hidden: Same leading shape and device; hidden size and dtype are the teacher's own.
        teacher_weight: (V, teacher's H); another V is allowed with `vocab_size`.
        step_ids: Step of each token, as in `step_kl`. The chunks are planned on the host: with CUDA tensors
            give ids (and `step_trajectory`) on the CPU, which saves a wait for the device and is the only way
            in compiled code and CUDA graphs.
        student_bias: (V,) or None.
        teacher_bias: (V,) or None.
        student_logit_scale: Factor of the product, above 0.
        teacher_logit_scale: Factor of the product, above 0.
        student_softcap: Bound of the logits, above 0, or None.
        teacher_softcap: Bound of the logits, above 0, or None.
        reference_hidden: Of a frozen reference policy, with `reference_weight`; adds `token_reference_kl`.
        reference_weight: (V, reference's H).
        reference_bias: (V,) or None.
        reference_logit_scale: Factor of the product, above 0.
        reference_softcap: Bound of the logits, above 0, or None.
        policy_gradient: Adds a clipped policy-gradient term on the sampled tokens; needs `sampled_ids`.
        kl_coefficient: Factor of the divergence (and of the second target) in the loss, at least 0.
        entropy_coefficient: Factor of the entropy that the loss rewards.
        single_sweep: Whether the loss alone is differentiable, in a single sweep. False: `loss`, `token_kl`,
            `token_reference_kl`, `student_log_probs` and `student_entropy` are, with any upstream gradient; a
            second sweep projects the logits again.
        chunk_size: Most rows that are projected together. None: as many as keep the logits within 300 MiB on
            the CPU and 1.5 GiB elsewhere, at least 16; more to the end of a step whose weight is waited for,
            where that takes less memory than the sums of the waiting rows.
        response_mask: As in `step_kl`; where step ids may be.
        sampled_ids: As in `step_kl`; where the hidden states are.
        step_trajectory: As in `step_kl`; where the step ids are.
        num_steps: As in `step_kl`.
        divergence: As in `step_kl`.
        beta: As in `step_kl`.
        temperature: As in `step_kl`.
        vocab_size: Valid rows of all weights; those beyond are not multiplied and get zero gradient. None:
            all.
        min_log_prob: As in `step_kl`.
        step_divergence: As in `step_kl`.
        weighting: As in `step_kl`, see above.
        token_weights: As in `step_kl`.
        reduction: As in `step_kl`; "none" only without a single sweep.
        denominator: As in `step_kl`.
        process_group: For vocabulary-parallel heads: ranks that hold the same hidden states and equal shards
            of the rows of every weight and bias, rank r those from r V / R on. Everything else is the same on
            every rank, and so is the output; `vocab_size` and `sampled_ids` count in the whole vocabulary.
            Gradients of weight and bias are those of the rank's rows; that of the hidden states is added up
            over the ranks, so every rank must want the same ones. Besides it the numbers per token of
            `step_kl` are exchanged, once per chunk.
        backend: As in `step_kl`: what runs on the chunks' logits.

    Returns:
        As of `step_kl`; in a single sweep everything but `loss` is detached.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, value or combination is wrong.
        BackendUnavailableError: If the backend cannot run here.

    Source:
        SOD, arXiv 2605.07725, equations (3) to (9); the single sweep is derived in docs/math.md.
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
    heads = {
        "student": Head(student_hidden, student_weight, student_bias, student_logit_scale, student_softcap),
        "teacher": Head(teacher_hidden, teacher_weight, teacher_bias, teacher_logit_scale, teacher_softcap),
    }
    checks.check_reference(
        _NAME, reference_hidden, reference_weight, reference_bias, reference_logit_scale, reference_softcap
    )
    if reference_hidden is not None and reference_weight is not None:
        heads["reference"] = Head(
            reference_hidden, reference_weight, reference_bias, reference_logit_scale, reference_softcap
        )
    shard = resolve_heads(_NAME, heads, vocab_size, process_group)
    steps = resolve_steps(
        options,
        student_hidden,
        step_ids=step_ids,
        response_mask=response_mask,
        step_trajectory=step_trajectory,
        num_steps=num_steps,
    )
    options.check_tokens(steps.ids, sampled_ids, vocab_size=shard.vocab_size)
    return run(options, chunks, heads, steps, sampled_ids, shard)
