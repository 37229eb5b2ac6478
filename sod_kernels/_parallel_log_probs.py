"""Log-probabilities of chosen ids and entropy where every rank holds a shard of the columns of the same rows.

Ids belong to the rank that has their column. Forward each rank walks over its shard once and gives away the
log-sum-exp, the entropy and the logits of the ids that are its own. Backward nothing is exchanged: a column's
gradient needs its own logit, the merged state and the sum of the upstream gradients, which every rank has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels import _collectives, _dispatch
from sod_kernels._log_prob_ops import log_probs_outputs
from sod_kernels._op_registry import Op, register, register_gradient
from sod_kernels.types import (
    Backend,
    DivergenceSpec,
    LogProbGradients,
    LogProbInputs,
    LogProbStats,
    RowState,
    TokenGradients,
    TokenInputs,
)

_INPUTS = "Tensor student_logits, Tensor step_ids, Tensor ids"
_OPTIONS = "float temperature, SymInt vocab_size, SymInt first, str backend, str group"
_FORWARD = (
    f"log_probs_sharded_forward({_INPUTS}, {_OPTIONS}) -> (Tensor log_probs, Tensor student_entropy, "
    "Tensor row_state)"
)
_BACKWARD = (
    f"log_probs_sharded_backward(Tensor grad_log_probs, Tensor grad_student_entropy, {_INPUTS}, "
    f"Tensor row_state, {_OPTIONS}) -> Tensor"
)
_LSE, _ENTROPY = RowState.STUDENT_LSE, RowState.STUDENT_ENTROPY


class ShardedLogProbs:
    """A backend's log-prob sweeps over this rank's columns of whole rows; every rank calls them alike.

    Ids count in the whole vocabulary, `vocab_size` is the number of valid columns of the shard.

    Attributes:
        first: Number, in the whole vocabulary, of the shard's first column.
    """

    def __init__(
        self, backend: Backend, first: int, group: str, *, width: int, function: str = "topk_step_kl"
    ) -> None:
        """Choose what runs on the shard.

        Args:
            backend: That runs.
            first: Number, in the whole vocabulary, of the shard's first column.
            group: Name of the process group.
            width: Columns of the shard, padding included.
            function: Name of the function that was called, for messages.
        """
        self.first = first
        self._backend, self._group, self._width, self._function = backend, group, width, function

    def log_probs_forward(self, inputs: LogProbInputs) -> LogProbStats:
        """Run the forward sweep and exchange what the whole rows need.

        Args:
            inputs: Of the shard, with ids of the whole vocabulary.

        Returns:
            Of the whole rows, the same bits on every rank.
        """
        width = torch.full_like(inputs.step_ids, self._width).double()
        message = torch.cat((self.local_state(inputs), width[..., None]), -1)
        gathered = _collectives.gather(message, self._group)
        is_equal = (gathered[..., -1] == width).all()
        torch._assert_async(is_equal, f"{self._function}: ranks hold unequal shards")
        return merge(gathered[..., :-1], inputs)

    def local_state(self, inputs: LogProbInputs) -> Tensor:
        """Walk over the shard and keep what the merge needs.

        Args:
            inputs: Of the shard, with ids of the whole vocabulary.

        Returns:
            (B, T, 2 + K) float64: log-sum-exp and entropy of the shard alone, then the logits over
            temperature of its own ids, 0 at those of other ranks.
        """
        shape = inputs.step_ids.shape
        if inputs.vocab_size == 0:
            state = inputs.student_logits.new_zeros((*shape, 2), dtype=torch.float64)
            state[..., _LSE] = -torch.inf
            return torch.cat((state, torch.zeros_like(inputs.ids, dtype=torch.float64)), -1)
        columns, is_here = self._columns(inputs)
        alone = inputs._replace(ids=torch.where(is_here, columns, -1))
        state = self._backend.log_probs_forward(alone).row_state
        logits = inputs.student_logits.gather(-1, columns).double() / inputs.temperature
        return torch.cat((state, torch.where(is_here, logits, 0.0)), -1)

    def log_probs_backward(
        self,
        upstream: LogProbGradients,
        inputs: LogProbInputs,
        row_state: Tensor,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Run the backward sweep, which needs no exchange.

        Args:
            upstream: Gradients of the outputs of the whole rows.
            inputs: As in the forward sweep.
            row_state: (B, T, 2) from the forward sweep.
            out: Takes the gradient; may be the student's logits. None for a fresh tensor.

        Returns:
            Of this rank's columns.
        """
        logits = inputs.student_logits
        if inputs.vocab_size == 0:
            return logits.new_zeros(logits.shape) if out is None else out.zero_()
        is_there = (inputs.ids >= 0) & (inputs.step_ids >= 0)[..., None]
        of_ids = torch.where(is_there, upstream.log_probs.double(), 0.0)
        total = of_ids.sum(-1)
        columns, is_here = self._columns(inputs)
        # Before the sweep, which may write over the logits.
        at_ids = _gradient_at(columns, torch.where(is_here, of_ids, 0.0), total, upstream, inputs, row_state)
        grad = self._sweep(total, upstream, inputs, row_state, out)
        return grad.scatter_(-1, columns, at_ids.to(grad.dtype))

    def _columns(self, inputs: LogProbInputs) -> tuple[Tensor, Tensor]:
        """(B, T, K) column of each id within the shard, 0 where it is not here; and whether it is."""
        columns = inputs.ids - self.first
        is_here = (columns >= 0) & (columns < inputs.vocab_size) & (inputs.step_ids >= 0)[..., None]
        # A negative id is absent on every rank, also on the first.
        is_here = is_here & (inputs.ids >= 0)
        return torch.where(is_here, columns, 0), is_here

    def _sweep(
        self,
        total: Tensor,
        upstream: LogProbGradients,
        inputs: LogProbInputs,
        row_state: Tensor,
        out: Tensor | None,
    ) -> Tensor:
        """Write the gradient as if no id were here: a pair's backward sweep without its divergence."""
        logits, step_ids = inputs.student_logits, inputs.step_ids
        dtype = upstream.student_entropy.dtype
        state = row_state.new_zeros((*step_ids.shape, len(RowState)))
        state[..., _LSE] = state[..., RowState.TEACHER_LSE] = row_state[..., _LSE]
        state[..., _ENTROPY] = row_state[..., _ENTROPY]
        gradients = TokenGradients(
            token_kl=torch.zeros_like(total, dtype=dtype),
            token_reference_kl=total.new_empty(0, dtype=dtype),
            student_log_probs=total.to(dtype),
            student_entropy=upstream.student_entropy,
        )
        elsewhere = torch.full_like(step_ids, -1)
        spec = DivergenceSpec(
            divergence="reverse_kl",
            beta=0.5,
            temperature=inputs.temperature,
            vocab_size=inputs.vocab_size,
            min_log_prob=None,
        )
        pair = TokenInputs(logits, logits, None, step_ids, elsewhere)
        return self._backend.backward(gradients, pair, state, spec, out=out)


def merge(states: Tensor, inputs: LogProbInputs) -> LogProbStats:
    """Merge the states of all shards into what the whole rows give.

    Args:
        states: (R, B, T, 2 + K) from `local_state` of every rank, in the order of the columns.
        inputs: For step ids, ids and dtype.

    Returns:
        The statistics.
    """
    lses, entropies, logits = states[..., _LSE], states[..., _ENTROPY], states[..., 2:].sum(0)
    lse = lses.logsumexp(0)
    shares = lses - lse
    # A shard without mass has no entropy that could be told.
    terms = torch.where(shares == -torch.inf, 0.0, shares.exp() * (entropies - shares))
    is_active = inputs.step_ids >= 0
    is_there = (inputs.ids >= 0) & is_active[..., None]
    row_state = torch.where(is_active[..., None], torch.stack((lse, terms.sum(0)), -1), 0.0)
    dtype = torch.promote_types(inputs.student_logits.dtype, torch.float32)
    log_probs = torch.where(is_there, logits - lse[..., None], 0.0)
    return LogProbStats(log_probs.to(dtype), row_state[..., _ENTROPY].to(dtype, copy=True), row_state)


def _gradient_at(
    columns: Tensor,
    of_ids: Tensor,
    total: Tensor,
    upstream: LogProbGradients,
    inputs: LogProbInputs,
    row_state: Tensor,
) -> Tensor:
    """Whole gradient at some columns, (B, T, K) float64; columns that occur twice get the same number."""
    order = columns.argsort(dim=-1, stable=True)
    ranked = columns.gather(-1, order)
    number = torch.zeros_like(columns)
    number[..., 1:] = (ranked[..., 1:] != ranked[..., :-1]).cumsum(-1)
    group = torch.zeros_like(columns).scatter(-1, order, number)
    own = torch.zeros_like(of_ids).scatter_add(-1, group, of_ids).gather(-1, group)
    logits = inputs.student_logits.gather(-1, columns).double() / inputs.temperature
    log_p = logits - row_state[..., _LSE, None]
    score = total[..., None] + upstream.student_entropy.double()[..., None] * (
        log_p + row_state[..., _ENTROPY, None]
    )
    gradient = own - torch.where(logits == -torch.inf, 0.0, log_p.exp() * score)
    return torch.where((inputs.step_ids >= 0)[..., None], gradient / inputs.temperature, 0.0)


def _sweeps_and_inputs(arguments: tuple[Any, ...]) -> tuple[ShardedLogProbs, LogProbInputs]:
    logits, step_ids, ids, temperature, vocab_size, first, backend, group = arguments
    sweeps = ShardedLogProbs(_dispatch.load(backend), first, group, width=logits.shape[-1])
    return sweeps, LogProbInputs(logits, step_ids, ids, temperature, vocab_size)


def _run_forward(*arguments: Any) -> LogProbStats:
    sweeps, inputs = _sweeps_and_inputs(arguments)
    if inputs.step_ids.numel() == 0:
        return log_probs_outputs(*inputs[:3])
    return sweeps.log_probs_forward(inputs)


def _fake_forward(logits: Tensor, step_ids: Tensor, ids: Tensor, *_options: Any) -> LogProbStats:
    return log_probs_outputs(logits, step_ids, ids)


def _run_backward(*arguments: Any) -> Tensor:
    grad_log_probs, grad_entropy, logits, step_ids, ids, row_state, *options = arguments
    sweeps, inputs = _sweeps_and_inputs((logits, step_ids, ids, *options))
    if step_ids.numel() == 0:
        return inputs.student_logits.new_zeros(inputs.student_logits.shape)
    return sweeps.log_probs_backward(LogProbGradients(grad_log_probs, grad_entropy), inputs, row_state)


def _fake_backward(_log_probs: Tensor, _entropy: Tensor, student_logits: Tensor, *_rest: Any) -> Tensor:
    return student_logits.new_empty(student_logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    stats = LogProbStats(*output)
    ctx.mark_non_differentiable(stats.row_state)
    ctx.save_for_backward(*inputs[:3], stats.row_state)
    ctx.options = inputs[3:]


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    of_output = LogProbStats(*grads)
    upstream = (of_output.log_probs.contiguous(), of_output.student_entropy.contiguous())
    grad = torch.ops.sod_kernels.log_probs_sharded_backward(*upstream, *ctx.saved_tensors, *ctx.options)
    return (grad, *(None,) * (2 + len(ctx.options)))


register(Op(_FORWARD, _run_forward, _fake_forward), _differentiate, _setup_context)
register_gradient(Op(_BACKWARD, _run_backward, _fake_backward), "topk_step_kl")

log_probs_sharded_forward = torch.ops.sod_kernels.log_probs_sharded_forward
