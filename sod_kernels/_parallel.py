"""Vocabulary-parallel logits: every rank holds a shard of the columns of the same rows.

Each rank walks over its shard once; what leaves it are ten numbers per row. From them every rank merges the
row state of the whole rows, in the same order and so to the same bits, and goes back over its shard with it.
The JSD and a floor need the normalisers of the whole row at every entry, so for them each rank walks over its
shard once more, in plain torch whatever the backend, and three more numbers per row are exchanged. The
backward sweep needs no exchange: the upstream gradients belong to the whole rows and are the same on every
rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from sod_kernels import _collectives, _dispatch
from sod_kernels._autograd import INPUTS, NUM_INPUTS, OPTIONS, make_spec, new_outputs
from sod_kernels._checks import arguments, shards
from sod_kernels._op_registry import Op, register
from sod_kernels.reference.backend import sums_over_shard
from sod_kernels.segments import step_sums
from sod_kernels.types import Backend, DivergenceSpec, RowState, TokenGradients, TokenInputs, TokenStats

_FORWARD = (
    f"step_kl_sharded_forward({INPUTS}, SymInt num_steps, {OPTIONS}, str group) -> (Tensor token_kl, "
    "Tensor token_reference_kl, Tensor student_log_probs, Tensor teacher_log_probs, Tensor student_entropy, "
    "Tensor row_state, Tensor step_sums)"
)
_LSES = [RowState.STUDENT_LSE, RowState.TEACHER_LSE, RowState.REFERENCE_LSE]


class Shard(NamedTuple):
    """The columns that this rank holds.

    Attributes:
        first: Number, in the whole vocabulary, of the shard's first column.
        width: Valid columns of the shard; 0 where all of them are padding.
        vocab_size: Valid columns of the whole vocabulary.
        group: Name of the process group; None where this process holds the whole vocabulary.
    """

    first: int
    width: int
    vocab_size: int
    group: str | None


def resolve_shard(
    function: str,
    student_logits: Tensor,
    others: dict[str, Tensor],
    vocab_size: int | None,
    group: dist.ProcessGroup | None,
) -> Shard:
    """Check logits and work out which columns this rank holds: all of them without a group.

    Args:
        function: Name for messages.
        student_logits: (..., V / R).
        others: Argument name to logits of the same shard.
        vocab_size: Valid columns of the whole vocabulary, None for all.
        group: All R ranks, of which rank r holds columns r V / R and on; or None.

    Returns:
        The shard.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For wrong logits, or shards that do not fit together.
    """
    if group is None:
        width = arguments.check_logits(function, student_logits, others, vocab_size)
        return Shard(first=0, width=width, vocab_size=width, group=None)
    arguments.check_logits(function, student_logits, others, 1)
    shards.check_group(function, group)
    width = student_logits.shape[-1]
    widths = {"student_logits": width} | {name: each.shape[-1] for name, each in others.items()}
    total = shards.check_shard_widths(function, widths, vocab_size, dist.get_world_size(group))
    shards.check_ranks_agree(function, student_logits, group)
    return shard_of(width, total, group)


def shard_of(width: int, vocab_size: int, group: dist.ProcessGroup) -> Shard:
    """Work out which columns this rank holds.

    Args:
        width: Columns of every shard.
        vocab_size: Valid columns of the whole vocabulary.
        group: All ranks.

    Returns:
        The shard.
    """
    first = dist.get_rank(group) * width
    return Shard(first, max(0, min(width, vocab_size - first)), vocab_size, group.group_name)


def local_ids(sampled_ids: Tensor, shard: Shard) -> Tensor:
    """Number sampled ids within a shard.

    Args:
        sampled_ids: Any shape, in the whole vocabulary.
        shard: Whose columns count.

    Returns:
        int64 of the same shape, -1 for tokens of other shards.
    """
    ids = sampled_ids.detach().to(torch.int64)
    if shard.group is None:
        return ids
    ids = ids - shard.first
    return torch.where((ids >= 0) & (ids < shard.width), ids, -1)


def local_state(backend: Backend, inputs: TokenInputs, num_steps: int, spec: DivergenceSpec) -> Tensor:
    """Walk over a shard and keep what the merge needs.

    Args:
        backend: That runs.
        inputs: Of the shard, with local sampled ids or None.
        num_steps: Number of steps.
        spec: With the shard's number of valid columns; without what needs the whole row at every entry.

    Returns:
        (B, T, 9) float64: the row state of the shard alone, then the student's and the teacher's logit of the
        sampled token over temperature, 0 where another shard has it.
    """
    step_ids = inputs.step_ids
    if spec.vocab_size == 0:
        state = step_ids.new_zeros((*step_ids.shape, len(RowState)), dtype=torch.float64)
        state[..., _LSES] = -torch.inf
    else:
        # The backend would look sampled ids up in its columns, where most of them are not.
        alone = inputs._replace(sampled_ids=None)
        state = backend.forward(alone, num_steps, _of_one_walk(spec)).row_state
    sampled = [torch.zeros_like(state[..., 0])] * 2
    if inputs.sampled_ids is not None and spec.vocab_size > 0:
        is_here = (inputs.sampled_ids >= 0) & (step_ids >= 0)
        column = torch.where(is_here, inputs.sampled_ids, 0)[..., None]
        sampled = [
            torch.where(is_here, logits.gather(-1, column)[..., 0].double() / spec.temperature, 0.0)
            for logits in (inputs.student_logits, inputs.teacher_logits)
        ]
    return torch.cat((state, torch.stack(sampled, -1)), -1)


def merge_states(states: Tensor, step_ids: Tensor, spec: DivergenceSpec, *, has_reference: bool) -> Tensor:
    """Merge the states of all shards into that of the whole rows.

    Args:
        states: (R, B, T, 9) from `local_state` of every rank, in the order of the columns.
        step_ids: (B, T), -1 in no step.
        spec: What to compute; the divergence of the JSD and with a floor is left to `with_sums`.
        has_reference: Whether a reference was given.

    Returns:
        (B, T, 9): the row state of the whole rows, and both sampled logits over temperature.
    """
    student, teacher = states[..., RowState.STUDENT_LSE], states[..., RowState.TEACHER_LSE]
    shares = student - student.logsumexp(0)
    merged = {
        RowState.STUDENT_LSE: student.logsumexp(0),
        RowState.STUDENT_ENTROPY: _mean(shares, states[..., RowState.STUDENT_ENTROPY] - shares),
        RowState.TEACHER_LSE: teacher.logsumexp(0),
    }
    divergence = states[..., RowState.DIVERGENCE]
    if spec.divergence != "forward_kl":
        merged[RowState.DIVERGENCE] = merged[RowState.AUX] = _merge_kl(divergence, student, teacher)
    else:
        merged[RowState.DIVERGENCE] = _merge_kl(divergence, teacher, student)
        merged[RowState.AUX] = _mean(teacher - merged[RowState.TEACHER_LSE], states[..., RowState.AUX])
    zeros = torch.zeros_like(shares[0])
    merged[RowState.REFERENCE_LSE] = merged[RowState.REFERENCE_KL] = zeros
    if has_reference:
        reference = states[..., RowState.REFERENCE_LSE]
        merged[RowState.REFERENCE_LSE] = reference.logsumexp(0)
        merged[RowState.REFERENCE_KL] = _merge_kl(states[..., RowState.REFERENCE_KL], student, reference)
    columns = [merged[column] for column in RowState]
    whole = torch.cat((torch.stack(columns, -1), states[..., len(RowState) :].sum(0)), -1)
    return torch.where((step_ids >= 0)[..., None], whole, 0.0)


def _mean(log_shares: Tensor, values: Tensor) -> Tensor:
    """Average over shards, (R, B, T) to (B, T); a shard without mass counts as 0, one with +inf as +inf."""
    terms = torch.where(values == torch.inf, torch.inf, log_shares.exp() * values)
    return torch.where(log_shares == -torch.inf, 0.0, terms).sum(0)


def _merge_kl(of_shard: Tensor, mass_lse: Tensor, other_lse: Tensor) -> Tensor:
    """KL of the whole rows from the KLs within the shards: the chain rule of the relative entropy."""
    mass = mass_lse - mass_lse.logsumexp(0)
    other_total = other_lse.logsumexp(0)
    # Mass where the other side excludes the whole shard makes the KL +inf by definition.
    values = torch.where(other_lse == -torch.inf, torch.inf, of_shard + mass - (other_lse - other_total))
    return torch.where(other_total == -torch.inf, torch.nan, _mean(mass, values))


def needs_second_walk(spec: DivergenceSpec) -> bool:
    """Say whether a shard's sums need the normalisers of the whole row.

    Args:
        spec: What to compute.

    Returns:
        True for the JSD and with a floor.
    """
    return spec.divergence == "jsd" or spec.min_log_prob is not None


def _of_one_walk(spec: DivergenceSpec) -> DivergenceSpec:
    kind = "reverse_kl" if spec.divergence == "jsd" else spec.divergence
    return replace(spec, divergence=kind, min_log_prob=None)


def with_sums(whole: Tensor, sums: Tensor, step_ids: Tensor, spec: DivergenceSpec) -> Tensor:
    """Put what the second walk gave into the merged state.

    Args:
        whole: (B, T, 9) from `merge_states`.
        sums: (R, B, T, 3) from `sums_over_shard` of every rank.
        step_ids: (B, T), -1 in no step.
        spec: What to compute.

    Returns:
        (B, T, 9).
    """
    divergence, aux, reference = torch.where((step_ids >= 0)[..., None], sums.sum(0), 0.0).unbind(-1)
    whole = whole.clone()
    whole[..., RowState.DIVERGENCE], whole[..., RowState.AUX] = divergence, aux
    if spec.min_log_prob is not None:
        whole[..., RowState.REFERENCE_KL] = reference
    return whole


def make_stats(whole: Tensor, inputs: TokenInputs, num_steps: int, spec: DivergenceSpec) -> TokenStats:
    """Report the merged state of every row and the sums per step.

    Args:
        whole: (B, T, 9) from `merge_states`.
        inputs: For dtype, step ids and what was given.
        num_steps: Number of steps.
        spec: The floor is read.

    Returns:
        What a backend's forward sweep over the whole rows would give.
    """
    stats = new_outputs(inputs, num_steps)
    dtype = stats.token_kl.dtype
    state = whole[..., : len(RowState)].contiguous()
    token_kl = state[..., RowState.DIVERGENCE].clamp(min=0.0).to(dtype)
    entropy = state[..., RowState.STUDENT_ENTROPY].to(dtype, copy=True)
    log_probs = None
    if inputs.sampled_ids is not None:
        student, teacher = (whole[..., len(RowState) :] - state[..., _LSES[:2]]).unbind(-1)
        teacher = teacher if spec.min_log_prob is None else teacher.clamp(min=spec.min_log_prob)
        # Rows in no step have no floor either. And outputs of a custom op must not share memory.
        teacher = torch.where(inputs.step_ids >= 0, teacher, 0.0)
        log_probs = (student.to(dtype, copy=True), teacher.to(dtype, copy=True))
        stats = stats._replace(student_log_probs=log_probs[0], teacher_log_probs=log_probs[1])
    if inputs.reference_logits is not None:
        kl = state[..., RowState.REFERENCE_KL].clamp(min=0.0).to(dtype)
        stats = stats._replace(token_reference_kl=kl)
    sums = step_sums(token_kl, entropy, log_probs, inputs.step_ids, num_steps)
    return stats._replace(token_kl=token_kl, student_entropy=entropy, row_state=state, step_sums=sums)


class ShardedSweeps:
    """A backend's two sweeps over this rank's columns of whole rows; every rank calls them alike."""

    def __init__(self, backend: Backend, group: str, *, width: int, function: str) -> None:
        """Choose what runs on the shard.

        Args:
            backend: That runs.
            group: Name of the process group.
            width: Columns of the shard, padding included.
            function: Name of the function that was called, for messages.
        """
        self._backend, self._group, self._width, self._function = backend, group, width, function

    def forward(self, inputs: TokenInputs, num_steps: int, spec: DivergenceSpec) -> TokenStats:
        """Run the forward sweep and exchange what the whole rows need.

        Args:
            inputs: Of the shard, with local sampled ids or None.
            num_steps: Number of steps.
            spec: With the shard's number of valid columns.

        Returns:
            Of the whole rows, the same bits on every rank.
        """
        state = local_state(self._backend, inputs, num_steps, spec)
        # The width goes along, as unequal shards would shift every column number without anybody noticing.
        width = torch.full_like(state[..., :1], self._width)
        gathered = _collectives.gather(torch.cat((state, width), -1), self._group)
        is_equal = (gathered[..., -1] == width[..., 0]).all()
        torch._assert_async(is_equal, f"{self._function}: ranks hold unequal shards")
        has_reference = inputs.reference_logits is not None
        whole = merge_states(gathered[..., :-1], inputs.step_ids, spec, has_reference=has_reference)
        if needs_second_walk(spec):
            sums = sums_over_shard(inputs, whole[..., : len(RowState)], spec)
            whole = with_sums(whole, _collectives.gather(sums, self._group), inputs.step_ids, spec)
        return make_stats(whole, inputs, num_steps, spec)

    def backward(
        self,
        upstream: TokenGradients,
        inputs: TokenInputs,
        row_state: Tensor,
        spec: DivergenceSpec,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Run the backward sweep, which needs no exchange.

        Args:
            upstream: Gradients of the outputs of the whole rows.
            inputs: As in `forward`.
            row_state: From `forward`.
            spec: As in `forward`.
            out: Takes the gradient; may be the student's logits. None for a fresh tensor.

        Returns:
            Of this rank's columns.
        """
        if spec.vocab_size == 0:
            logits = inputs.student_logits
            return logits.new_zeros(logits.shape) if out is None else out.zero_()
        return self._backend.backward(upstream, inputs, row_state, spec, out=out)


def _run_forward(*arguments: Any) -> TokenStats:
    inputs = TokenInputs(*arguments[:NUM_INPUTS])
    num_steps, *options, backend, group_name = arguments[NUM_INPUTS:]
    if inputs.step_ids.numel() == 0:
        return new_outputs(inputs, num_steps)
    width = inputs.student_logits.shape[-1]
    sweeps = ShardedSweeps(_dispatch.load(backend), group_name, width=width, function="step_kl")
    return sweeps.forward(inputs, num_steps, make_spec(options))


def _fake_forward(*arguments: Any) -> TokenStats:
    return new_outputs(TokenInputs(*arguments[:NUM_INPUTS]), arguments[NUM_INPUTS])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    stats = TokenStats(*output)
    ctx.mark_non_differentiable(stats.teacher_log_probs, stats.row_state, stats.step_sums)
    ctx.save_for_backward(*inputs[:NUM_INPUTS], stats.row_state)
    ctx.options = inputs[NUM_INPUTS + 1 : -1]
    ctx.num_arguments = len(inputs)


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    of_output = TokenStats(*grads)
    student_logits = ctx.saved_tensors[0]
    if make_spec(ctx.options[:-1]).vocab_size == 0:
        grad = student_logits.new_zeros(student_logits.shape)
    else:
        upstream = (getattr(of_output, name).contiguous() for name in TokenGradients._fields)
        grad = torch.ops.sod_kernels.step_kl_backward(*upstream, *ctx.saved_tensors, *ctx.options)
    return (grad, *(None,) * (ctx.num_arguments - 1))


register(Op(_FORWARD, _run_forward, _fake_forward), _differentiate, _setup_context)

step_kl_sharded_forward = torch.ops.sod_kernels.step_kl_sharded_forward
