"""`linear_step_kl`: from hidden states and output heads. Check, plan, sweep, weigh, reduce."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._checks import arguments, weightings
from sod_kernels._checks import hidden as checks
from sod_kernels._layout import StepLayout, resolve_layout
from sod_kernels._reduction import reduce_loss, reference_weights, step_weights
from sod_kernels.functional.output import make_output, step_statistics
from sod_kernels.linear import ops
from sod_kernels.linear.inputs import LinearInputs, LinearOptions, Objective
from sod_kernels.linear.policy import PolicyGradient, policy_terms
from sod_kernels.linear.rows import to_device
from sod_kernels.linear.weights import is_causal, registered
from sod_kernels.types import StepKLOutput, StepStatistics, TokenStats
from sod_kernels.weighting import SodWeighting

_NAME = "linear_step_kl"
_Weighting = Tensor | Callable[[StepStatistics], Tensor] | None


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
    weighting: _Weighting = None,
    token_weights: Tensor | None = None,
    reduction: str = "token_mean",
    denominator: float | Tensor | None = None,
    backend: str = "auto",
) -> StepKLOutput:
    r"""Compute `step_kl` from hidden states and output heads, without holding the logits of the batch.

    With :math:`z = \mathrm{cap}(\mathrm{scale} \cdot h W^T + b)`,
    :math:`\mathrm{cap}(x) = \mathrm{softcap} \tanh(x / \mathrm{softcap})`, of either model, and
    :math:`D_n, w_k, v_n, Z` as in `step_kl`:

    .. math:: L = \frac{1}{Z} \sum_n v_n \left( c_{kl} w_{k(n)} D_n + P_n - c_{H} H_n \right)

    where :math:`P_n` is the clipped policy-gradient term and :math:`H_n` the student's entropy; with a reference
    :math:`w_k D_n + \max(0, 1 - w_k) \mathrm{KL}(p_n \| r_n)` takes the place of :math:`w_k D_n`. Step weights apply
    to the divergence only, token weights to everything.

    Rows are walked in chunks whose logits, in float32 even for bfloat16 inputs, live in buffers that are used
    again; rows in no step are not projected. In a *single sweep* the gradients of `loss` are made on the way and
    nothing is projected twice. That needs weights that are known when a step is complete: None, a tensor,
    `SodWeighting`, or a function with an attribute ``is_causal = True``, which promises that a step's weight reads
    that step and earlier ones of its trajectory (later steps come without tokens). For any other weighting, and
    in compiled code for any function but `SodWeighting`, the heads are multiplied once more in the backward pass.

    Args:
        student_hidden: (N, H) packed or (B, T, H) padded; float64, float32, bfloat16 or float16.
        student_weight: (V, H) as in `torch.nn.Linear`, of the same dtype. A gradient is computed for each of
            hidden states, weight and bias only if that one requires it.
        teacher_hidden: Same leading shape and device; hidden size and dtype are the teacher's own.
        teacher_weight: (V, teacher's H); another V is allowed with `vocab_size`.
        step_ids: Step of each token, as in `step_kl`. The chunks are planned on the host: with CUDA tensors give
            ids (and `step_trajectory`) on the CPU, which saves a wait for the device and is the only way in
            compiled code and CUDA graphs.
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
            `token_reference_kl`, `student_log_probs` and `student_entropy` are, with any upstream gradient; a second
            sweep projects the logits again.
        chunk_size: Most rows that are projected together. None: as many as keep the logits within 256 MiB on the
            CPU and 1.5 GiB elsewhere, at least 16.
        response_mask: As in `step_kl`; where step ids may be.
        sampled_ids: As in `step_kl`; where the hidden states are.
        step_trajectory: As in `step_kl`; where the step ids are.
        num_steps: As in `step_kl`.
        divergence: As in `step_kl`.
        beta: As in `step_kl`.
        temperature: As in `step_kl`.
        vocab_size: Valid rows of all weights; those beyond are not multiplied and get zero gradient. None: all.
        min_log_prob: As in `step_kl`.
        step_divergence: As in `step_kl`.
        weighting: As in `step_kl`, see above.
        token_weights: As in `step_kl`.
        reduction: As in `step_kl`; "none" only without a single sweep.
        denominator: As in `step_kl`.
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
    checks.check_reference(
        _NAME, reference_hidden, reference_weight, reference_bias, reference_logit_scale, reference_softcap
    )
    heads = {
        "student": (student_hidden, student_weight, student_bias),
        "teacher": (teacher_hidden, teacher_weight, teacher_bias),
    }
    scales = {
        "student": (student_logit_scale, student_softcap),
        "teacher": (teacher_logit_scale, teacher_softcap),
    }
    if reference_hidden is not None:
        heads["reference"] = (reference_hidden, reference_weight, reference_bias)
        scales["reference"] = (reference_logit_scale, reference_softcap)
    width = checks.check_heads(_NAME, heads, vocab_size)
    checks.check_scales(_NAME, scales)
    kind, mixture = arguments.check_divergence(_NAME, divergence, beta, temperature, min_log_prob)
    arguments.check_options(_NAME, step_divergence, reduction, backend)
    checks.check_mode(_NAME, single_sweep, reduction, chunk_size)
    checks.check_coefficients(_NAME, kl_coefficient, entropy_coefficient)
    layout, ids = _layout(student_hidden, step_ids, response_mask, step_trajectory, num_steps, weighting)
    arguments.check_sampled_ids(_NAME, sampled_ids, ids, vocab_size=width, step_divergence=step_divergence)
    arguments.check_loss_arguments(_NAME, token_weights, denominator, reduction=reduction, like=ids)
    checks.check_policy(_NAME, policy_gradient, PolicyGradient, sampled_ids, ids)
    inputs = _inputs(heads, layout.step_ids, sampled_ids)
    device_type = student_hidden.device.type
    options = LinearOptions(
        num_steps=layout.num_steps,
        student_scale=float(student_logit_scale),
        teacher_scale=float(teacher_logit_scale),
        reference_scale=float(reference_logit_scale),
        student_softcap=_optional_float(student_softcap),
        teacher_softcap=_optional_float(teacher_softcap),
        reference_softcap=_optional_float(reference_softcap),
        divergence=kind,
        beta=float(mixture),
        temperature=float(temperature),
        vocab_size=width,
        min_log_prob=_optional_float(min_log_prob),
        chunk_size=chunk_size or 0,
        backend=_dispatch.resolve(backend, device_type, inputs.dtype),
    )
    batch = _Batch(inputs, options, ids, to_device(layout.trajectory, ids.device), layout.trajectory)
    loss = _Loss(
        policy=policy_gradient,
        kl_coefficient=float(kl_coefficient),
        entropy_coefficient=float(entropy_coefficient),
        step_divergence=step_divergence,
        weighting=weighting,
        token_weights=token_weights,
        reduction=reduction,
        denominator=_scalar(denominator, inputs),
    )
    if single_sweep and _is_known_in_time(weighting):
        return _single(batch, loss)
    return _double(batch, loss, is_detached=single_sweep)


class _Batch(NamedTuple):
    """Checked inputs; ids (leading shape) and trajectory (S,) where the hidden states are, and on the host."""

    inputs: LinearInputs
    options: LinearOptions
    ids: Tensor
    trajectory: Tensor
    host_trajectory: Tensor

    @property
    def has_sampled(self) -> bool:
        return self.inputs.sampled_ids is not None

    @property
    def has_reference(self) -> bool:
        return self.inputs.reference_hidden is not None


class _Loss(NamedTuple):
    """What the loss is made of."""

    policy: PolicyGradient | None
    kl_coefficient: float
    entropy_coefficient: float
    step_divergence: str
    weighting: _Weighting
    token_weights: Tensor | None
    reduction: str
    denominator: Tensor | None


def _optional_float(number: float | None) -> float | None:
    return None if number is None else float(number)


def _scalar(denominator: float | Tensor | None, inputs: LinearInputs) -> Tensor | None:
    like = inputs.student_hidden
    if denominator is None:
        return None
    if isinstance(denominator, Tensor):
        return to_device(denominator.detach(), like.device)
    return torch.full((), denominator, dtype=inputs.dtype, device=like.device)


def _layout(
    hidden: Tensor,
    step_ids: Tensor | None,
    response_mask: Tensor | None,
    step_trajectory: Tensor | None,
    num_steps: int | None,
    weighting: _Weighting,
) -> tuple[StepLayout, Tensor]:
    """Steps where they were given (or on the CPU), and their ids where the hidden states are."""
    weightings.check_weighting(_NAME, weighting, may_be_tensor=True)
    given = step_ids if step_ids is not None else response_mask
    is_on_host = not isinstance(given, Tensor) or given.device.type == "cpu"
    # Stands for logits of the batch, of which only leading shape and device are looked at.
    like = torch.empty((), device="cpu" if is_on_host else hidden.device).expand(hidden.shape)
    layout = resolve_layout(
        _NAME,
        like,
        step_ids=step_ids,
        response_mask=response_mask,
        step_trajectory=step_trajectory,
        num_steps=num_steps,
        weighting=weighting,
    )
    checks.check_may_plan(_NAME, layout.step_ids)
    return layout, to_device(layout.step_ids, hidden.device)


def _inputs(
    heads: dict[str, tuple[Tensor, Tensor, Tensor | None]], step_ids: Tensor, sampled_ids: Tensor | None
) -> LinearInputs:
    """Flatten the leading shape, and cut everybody but the student off the graph."""
    tensors: list[Tensor | None] = []
    for model, (hidden, weight, bias) in heads.items():
        head = (hidden.reshape(-1, hidden.shape[-1]), weight, bias)
        tensors += head if model == "student" else [None if each is None else each.detach() for each in head]
    tensors += [None] * (9 - len(tensors))
    sampled = None if sampled_ids is None else sampled_ids.detach().to(torch.int64).reshape(-1)
    return LinearInputs(*tensors, step_ids.reshape(-1), sampled)  # type: ignore[arg-type]


def _is_known_in_time(weighting: _Weighting) -> bool:
    """Whether weights can be had during the sweep."""
    if torch.compiler.is_compiling() and callable(weighting):
        return isinstance(weighting, SodWeighting)
    return is_causal(weighting)


def _shaped(stats: TokenStats, ids: Tensor) -> TokenStats:
    """Token outputs in the leading shape; those that were not asked for have no entries."""
    tokens = (each.view(ids.shape) if each.shape[0] == ids.numel() else each for each in stats[:5])
    return TokenStats(*tokens, *stats[5:])


def _single(batch: _Batch, loss: _Loss) -> StepKLOutput:
    """Loss and gradients in one op."""
    weighting, inputs, options = loss.weighting, batch.inputs, batch.options
    weights = weighting if isinstance(weighting, Tensor) else None
    if weights is not None:
        like = inputs.student_hidden.new_empty(options.num_steps)
        weightings.check_step_weights(_NAME, weights, like)
    sod = weighting if isinstance(weighting, SodWeighting) else None
    is_own = callable(weighting) and sod is None
    policy = loss.policy
    learned = inputs[:3]
    wanted = (torch.is_grad_enabled() and each is not None and each.requires_grad for each in learned)

    def flat(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().reshape(-1)

    with registered(weighting) if is_own and callable(weighting) else nullcontext(0) as key:
        objective = Objective(
            step_trajectory=batch.host_trajectory,
            step_weights=None if weights is None else weights.detach(),
            token_weights=flat(loss.token_weights),
            denominator=loss.denominator,
            advantages=None if policy is None else flat(policy.advantages),
            old_log_probs=None if policy is None else flat(policy.old_log_probs),
            weighting=key,
            delta=None if sod is None else float(sod.delta),
            epsilon=None if sod is None else float(sod.epsilon),
            clip_low=0.0 if policy is None else float(policy.clip_low),
            clip_high=0.0 if policy is None else float(policy.clip_high),
            dual_clip=None if policy is None else _optional_float(policy.dual_clip),
            kl_coefficient=loss.kl_coefficient,
            entropy_coefficient=loss.entropy_coefficient,
            step_divergence=loss.step_divergence,
            reduction=loss.reduction,
        )
        value, *tokens, sums, applied = ops.linear_step_kl_loss(*inputs, *options, *objective, *wanted)[:8]
    # The row state stays inside the op; nothing here reads it.
    stats = _shaped(TokenStats(*tokens, row_state=sums, step_sums=sums), batch.ids)
    return _output(batch, loss, value, stats, applied)


def _double(batch: _Batch, loss: _Loss, *, is_detached: bool) -> StepKLOutput:
    """Token outputs in one op, the loss on top of them, the gradient in a second op."""
    outputs = ops.linear_step_kl_forward(*batch.inputs, *batch.options)
    stats = _shaped(TokenStats._make(outputs), batch.ids)
    statistics = step_statistics(stats, batch.trajectory, loss.step_divergence, has_sampled=batch.has_sampled)
    weights = step_weights(_NAME, loss.weighting, statistics)
    terms = [(stats.token_kl, loss.kl_coefficient * weights)]
    if batch.has_reference:
        terms.append((stats.token_reference_kl, loss.kl_coefficient * reference_weights(weights)))
    ones = torch.ones_like(weights)
    if loss.policy is not None:
        terms.append((_policy_term(stats.student_log_probs, loss.policy, batch.ids), ones))
    if loss.entropy_coefficient != 0.0:
        terms.append((stats.student_entropy, -loss.entropy_coefficient * ones))
    value = reduce_loss(
        terms,
        batch.ids,
        statistics,
        token_weights=loss.token_weights,
        reduction=loss.reduction,
        denominator=loss.denominator,
    )
    if is_detached:
        stats = TokenStats(*(each.detach() for each in stats))
    return _output(batch, loss, value, stats, weights)


def _policy_term(log_probs: Tensor, policy: PolicyGradient, ids: Tensor) -> Tensor:
    """The policy's term per token, with its derivative for autograd."""
    # What stands at tokens in no step may be anything.
    advantages, old = (
        torch.where(ids >= 0, each.detach(), 0.0) for each in (policy.advantages, policy.old_log_probs)
    )
    term, slope = policy_terms(
        log_probs.detach(),
        old,
        advantages,
        clip_low=policy.clip_low,
        clip_high=policy.clip_high,
        dual_clip=policy.dual_clip,
    )
    return term + slope * (log_probs - log_probs.detach())


def _output(batch: _Batch, loss: _Loss, value: Tensor, stats: TokenStats, weights: Tensor) -> StepKLOutput:
    statistics = step_statistics(stats, batch.trajectory, loss.step_divergence, has_sampled=batch.has_sampled)
    return make_output(
        value,
        stats,
        statistics,
        weights,
        batch.options.backend,
        has_sampled=batch.has_sampled,
        has_reference=batch.has_reference,
    )
