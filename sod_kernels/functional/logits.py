"""`step_kl`: from the logits of student and teacher. Check, dispatch, weigh, reduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sod_kernels import _autograd, _parallel
from sod_kernels._checks.single_sweep import check_known_weights, check_single_sweep
from sod_kernels._layout import StepLayout, resolve_layout, with_unit_stride
from sod_kernels._reduction import (
    counted_statistics,
    divisors,
    reference_weights,
    step_weights,
    token_factors,
)
from sod_kernels._single_sweep import Parts, step_kl_loss
from sod_kernels.functional.options import Options, Weighting
from sod_kernels.functional.output import finish, make_output, step_statistics
from sod_kernels.segments import step_tokens
from sod_kernels.types import DivergenceSpec, StepKLOutput, TokenInputs, TokenStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NAME = "step_kl"
_FORWARD = _autograd.step_kl_forward
_SHARDED_FORWARD = _parallel.step_kl_sharded_forward


def step_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor | None = None,
    *,
    response_mask: Tensor | None = None,
    sampled_ids: Tensor | None = None,
    reference_logits: Tensor | None = None,
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
    single_sweep: bool = False,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> StepKLOutput:
    r"""Compute a divergence of student and teacher per token, weighted by step, and its statistics per step.

    With :math:`p = \mathrm{softmax}(z_s / \tau)` of the student, :math:`q` of the teacher, and :math:`k(n)`
    the step of token :math:`n`:

    .. math:: L = \frac{1}{Z} \sum_n w_{k(n)} \, v_n \, D_n, \qquad D_n = \mathrm{KL}(p_n \| q_n)

    where :math:`D_n` is the chosen divergence, :math:`w` the step weights, :math:`v` the token weights and
    :math:`Z` the divisor of `reduction`. With a reference policy :math:`r` the weights mix two targets:
    :math:`w_k D_n + \max(0, 1 - w_k)\,\mathrm{KL}(p_n \| r_n)` takes the place of :math:`w_k D_n`.

    One sweep over the logits gives everything in the output; one more gives the gradient, whatever is built
    on `loss`, `token_kl`, `token_reference_kl`, `student_log_probs` and `student_entropy`. Where the weights
    are known before, a *single sweep* gives both, for `loss` alone. Weights and step statistics are detached,
    and neither teacher nor reference gets a gradient.

    Args:
        student_logits: (N, V) packed or (B, T, V) padded; float64, float32, bfloat16 or float16. A view such
            as ``logits[:, :-1]`` is not copied, as long as its last stride is 1.
        teacher_logits: Same leading shape, dtype and device; another width is allowed with `vocab_size`.
        step_ids: Step of each token, leading shape, integer: 0 .. S-1 counted over the whole batch, -1 in no
            step (no loss, no gradient, logits not read). Without ids and mask every row of (B, T, V) is one
            step, and (N, V) is one step.
        response_mask: Leading shape, 0 and 1: ``step_ids = steps_from_mask(response_mask)``.
        sampled_ids: Token sampled at each position, leading shape, integer; gives the log-probabilities. May
            be anything where the token is in no step.
        reference_logits: Of a frozen reference policy, such as the student before training; same leading
            shape, dtype and device as the student's. Adds `token_reference_kl` and the second target.
        step_trajectory: (S,) integer, trajectory of each step, any values. None: a row of (B, T, V) is a
            trajectory, (N, V) is one trajectory. The order of steps in a trajectory is that of their ids.
        num_steps: S. None takes it from `step_trajectory` or a weight tensor, else reads the largest id,
            which waits for a CUDA device and is refused in compiled code and CUDA graphs. Steps without
            tokens do no harm.
        divergence: "reverse_kl", KL(student || teacher); "forward_kl", KL(teacher || student); or "jsd",
            beta KL(teacher || m) + (1 - beta) KL(student || m) with m = (1 - beta) student + beta teacher.
        beta: Weight of the teacher in [0, 1], for "jsd" only; None means 0.5. 0 is forward and 1 reverse KL.
        temperature: Divides both logits, above 0.
        vocab_size: Valid columns of all logits; those beyond are not read and get zero gradient. None: all.
        min_log_prob: Floor in nats under the log-probabilities that a KL divides by, which keeps it finite
            where the other side excludes a token; also under `teacher_log_probs` and in
            `token_reference_kl`. Not for "jsd", which is always finite.
        step_divergence: What is averaged over a step's tokens: "kl", the divergence, or "abs_log_ratio",
            abs(log p - log q) of the sampled token, which is SOD's.
        weighting: Step weights: None for 1, `SodWeighting`, `TurnWeighting`, a tensor (S,), or a function
            that takes `StepStatistics` and returns (S,). A step or token of weight 0 contributes exactly 0,
            also where its divergence is infinite.
        token_weights: Weight of each token, leading shape, floating, detached.
        reduction: "none" (leading shape), "sum", "token_mean" (over the tokens in steps), "step_mean" (token
            mean of each step, then mean over steps with tokens) or "sequence_mean" (token mean of each
            trajectory, then mean over trajectories with tokens). Weights do not change the counts.
        denominator: Number or scalar tensor in place of the last division of a mean, for gradient
            accumulation and data parallelism. None: the batch's own.
        single_sweep: Whether the loss alone is differentiable, its gradient made in the forward sweep, while
            each row is at hand, and kept in place of the logits. Needs weights that are known before:
            `weighting` None or a tensor; no process group, and no reduction "none". The gradient is that of
            the loss itself in the dtype of the logits, and what the loss is multiplied with comes after that:
            a loss scale does not keep a float16 gradient from underflow.
        process_group: For vocabulary-parallel logits: ranks that hold the same rows and equal shards of the
            columns, rank r those from r V / R on. Everything but the logits is the same on every rank, and
            so is everything in the output; `vocab_size` and `sampled_ids` count in the whole vocabulary. Ten
            numbers per token are exchanged forward and nothing backward, so each rank must go back with the
            same upstream gradients. "jsd" and `min_log_prob` cost one more walk over the shard, in plain
            torch, and three more numbers.
        backend: "auto", "reference", "native" or "triton".

    Returns:
        Loss, token and step statistics; float32 (float64 for float64 logits), nats. In a single sweep
        everything but `loss` is detached.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, value or combination is wrong.
        BackendUnavailableError: If the backend cannot run here.

    Source:
        SOD, arXiv 2605.07725, equations (5) to (9); gradients in docs/math.md.
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
    check_single_sweep(_NAME, single_sweep, reduction)
    check_known_weights(_NAME, single_sweep, weighting, process_group)
    others = {"teacher_logits": teacher_logits}
    if reference_logits is not None:
        others["reference_logits"] = reference_logits
    shard = _parallel.resolve_shard(_NAME, student_logits, others, vocab_size, process_group)
    spec = options.spec(shard.width)
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
    options.check_tokens(ids, sampled_ids, vocab_size=shard.vocab_size)
    backend_name = options.resolve_backend(student_logits, student_logits.dtype)
    sampled = None if sampled_ids is None else _parallel.local_ids(sampled_ids, shard)
    inputs = TokenInputs(student_logits, teacher_logits, reference_logits, ids, sampled)
    if single_sweep:
        return _sweep_once(inputs, layout, spec, options, backend_name)
    return finish(
        _sweep(inputs, layout.num_steps, spec, backend_name, shard.group),
        layout,
        options,
        has_sampled=sampled_ids is not None,
        has_reference=reference_logits is not None,
        backend=backend_name,
    )


def _batched(tensor: Tensor, step_ids: Tensor) -> Tensor:
    """(B, T, ...), which ops take: packed tokens go in as one row."""
    return tensor.unsqueeze(0) if step_ids.dim() == 1 else tensor


def _unbatched(outputs: Sequence[Tensor], step_ids: Tensor) -> list[Tensor]:
    """The caller's leading shape again."""
    return [each.squeeze(0) if step_ids.dim() == 1 else each for each in outputs]


def _op_inputs(inputs: TokenInputs) -> TokenInputs:
    """Everything as ops take it."""
    student, teacher, reference, ids, sampled = inputs

    def dense(logits: Tensor) -> Tensor:
        return _batched(with_unit_stride(logits), ids)

    return TokenInputs(
        dense(student),
        dense(teacher.detach()),
        None if reference is None else dense(reference.detach()),
        _batched(ids, ids),
        None if sampled is None else _batched(sampled.contiguous(), ids),
    )


def _op_options(spec: DivergenceSpec, backend: str) -> tuple[str | float | int | None, ...]:
    floor = None if spec.min_log_prob is None else float(spec.min_log_prob)
    return (
        spec.divergence,
        float(spec.beta),
        float(spec.temperature),
        spec.vocab_size,
        floor,
        backend,
    )


def _sweep(
    inputs: TokenInputs, num_steps: int, spec: DivergenceSpec, backend: str, group: str | None
) -> TokenStats:
    """Run the forward op; its outputs come out in the caller's leading shape."""
    arguments = (*_op_inputs(inputs), num_steps, *_op_options(spec, backend))
    outputs = _FORWARD(*arguments) if group is None else _SHARDED_FORWARD(*arguments, group)
    return TokenStats._make((*_unbatched(outputs[:-1], inputs.step_ids), outputs[-1]))


def _sweep_once(
    inputs: TokenInputs, layout: StepLayout, spec: DivergenceSpec, options: Options, backend: str
) -> StepKLOutput:
    """Make loss and gradient in one op."""
    student, _, reference, ids, sampled = inputs
    dtype = torch.promote_types(student.dtype, torch.float32)
    known = counted_statistics(step_tokens(ids, layout.num_steps), layout.trajectory, dtype)
    weights = step_weights(options.function, options.weighting, known)
    inner, divisor = divisors(options.reduction, known, options.denominator)

    def factors(per_step: Tensor) -> Tensor:
        return _batched(token_factors(per_step / inner, ids, options.token_weights), ids)

    parts = Parts(
        factors=factors(weights),
        reference_factors=None if reference is None else factors(reference_weights(weights)),
        divisor=divisor,
        learned=student[..., :0].sum(),
        wants_gradient=torch.is_grad_enabled() and student.requires_grad,
    )
    loss, *tokens, step_sums, _ = step_kl_loss(
        *_op_inputs(inputs), *parts, layout.num_steps, *_op_options(spec, backend)
    )
    # The row state stays inside the op, and nothing here reads it.
    stats = TokenStats._make((*_unbatched(tokens, ids), step_sums, step_sums))
    has_sampled = sampled is not None
    return make_output(
        loss,
        stats,
        step_statistics(stats, layout.trajectory, options.step_divergence, has_sampled=has_sampled),
        weights,
        backend,
        has_sampled=has_sampled,
        has_reference=reference is not None,
    )
