r"""Loss and gradients in a single sweep: each chunk is projected once, weighed, and taken back at once.

A step's weight is known when the step is complete. Rows of complete steps go straight into the gradients. The
one step that goes on past a chunk's end waits: weights commute with the sums over rows,

    dW = sum_n w_n G_n^T h_n = sum_k w_k (sum_{n in k} G_n^T h_n),

so its rows are added up with weight 1 in buffers of their own, and scaled and added when it is complete.
Those buffers exist only if a step crosses a border. Nothing is projected twice, whatever the length of the
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels import _collectives
from sod_kernels._reduction import reduce_loss, reference_weights
from sod_kernels.linear.heads import HeadGradients, Wanted
from sod_kernels.linear.inputs import LinearInputs, LinearOptions, Objective
from sod_kernels.linear.plan import Chunk
from sod_kernels.linear.policy import policy_terms
from sod_kernels.linear.sweep import ChunkSweep, TokenLedger
from sod_kernels.linear.targets import ChunkInputs
from sod_kernels.linear.terms import loss_terms
from sod_kernels.linear.weights import RunningWeights, needs_complete_steps
from sod_kernels.types import TokenGradients, TokenStats


class SingleSweepResult(NamedTuple):
    """Outputs of the op, in the order of its schema; a gradient that is not wanted has shape (0,)."""

    loss: Tensor
    token_kl: Tensor
    token_reference_kl: Tensor
    student_log_probs: Tensor
    teacher_log_probs: Tensor
    student_entropy: Tensor
    step_sums: Tensor
    step_weights: Tensor
    grad_hidden: Tensor
    grad_weight: Tensor
    grad_bias: Tensor


class _Pending:
    """Gradients, at weight 1, of the step that is not complete yet: one part of the loss."""

    def __init__(self) -> None:
        self.sums: HeadGradients | None = None
        self.hidden: list[tuple[int, Tensor]] = []


class _Gradients:
    """Where the gradients of chunks go."""

    def __init__(self, sweep: ChunkSweep, wanted: Wanted, group: str | None) -> None:
        self._sweep, self._wanted, self._group = sweep, wanted, group
        student = sweep.heads.student
        self.sums = HeadGradients(student, wanted, sweep.dtype)
        self.hidden = torch.zeros_like(student.hidden, dtype=sweep.dtype) if wanted.hidden else None
        self._pending = {"token_kl": _Pending(), "token_reference_kl": _Pending()}

    def add(self, grad: Tensor, hidden: Tensor, begin: int) -> None:
        """Add rows of the plan from `begin` on."""
        of_hidden = self.sums.add(grad, hidden)
        if self.hidden is not None and of_hidden is not None:
            self._sweep.rows.add(self.hidden, of_hidden, begin)

    def wait(self, part: str, grad: Tensor, hidden: Tensor, begin: int) -> None:
        """Keep one part of the gradient of such rows until their step is complete."""
        pending = self._pending[part]
        if pending.sums is None:
            pending.sums = HeadGradients(self._sweep.heads.student, self._wanted, self._sweep.dtype)
        of_hidden = pending.sums.add(grad, hidden)
        if of_hidden is not None:
            pending.hidden.append((begin, of_hidden))

    def settle(self, weight: Tensor) -> None:
        """Add what waits, now that the weight of its step is known."""
        factors = {"token_kl": weight, "token_reference_kl": reference_weights(weight)}
        for part, pending in self._pending.items():
            if pending.sums is not None:
                self.sums.add_scaled(pending.sums, factors[part])
            if self.hidden is not None:
                for begin, of_hidden in pending.hidden:
                    self._sweep.rows.add(self.hidden, of_hidden.mul_(factors[part]), begin)
            pending.hidden.clear()

    def finished(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of hidden states, weight and bias, after the walk; (0,) where not wanted."""
        if self.hidden is not None and self._group is not None:
            # Each rank has gone back through its own rows of the head.
            _collectives.add_up(self.hidden, self._group)
        empty = self._sweep.rows.ranks.new_empty
        given = (self.hidden, self.sums.weight, self.sums.bias)
        hidden, weight, bias = (empty(0, dtype=self._sweep.dtype) if each is None else each for each in given)
        return hidden, weight, bias


class SingleSweep:
    """One walk over a batch.

    Attributes:
        sweep: The walk.
        ledger: Its results.
        running: Step weights.
        gradients: Of the loss.
    """

    def __init__(
        self,
        inputs: LinearInputs,
        options: LinearOptions,
        objective: Objective,
        wanted: Wanted,
        *,
        make_sweep: Callable[..., ChunkSweep] = ChunkSweep,
        has_row_state: bool = False,
    ) -> None:
        """Plan the walk.

        Args:
            inputs: Tensors.
            options: Numbers and names of the sweep.
            objective: What makes the loss.
            wanted: Which gradients are asked for; none of them for the loss alone.
            make_sweep: Makes the walk; takes the arguments of `ChunkSweep`.
            has_row_state: Whether the row state is kept.
        """
        self._is_wanted = any(wanted)
        # Without a divergence in the loss no gradient waits for a weight.
        waits = self._is_wanted and objective.kl_coefficient != 0.0 and needs_complete_steps(objective)
        self._waits = waits
        self._has_direct = objective.advantages is not None or objective.entropy_coefficient != 0.0
        num_targets = 1 + (inputs.reference_hidden is not None)
        self.sweep = make_sweep(
            inputs,
            options,
            keeps_steps_whole=waits,
            keeps_logits=waits and num_targets + self._has_direct > 1,
            num_waiting=num_targets if wanted.weight else 0,
        )
        self.ledger = TokenLedger(self.sweep, has_row_state=has_row_state)
        self.running = RunningWeights(options.function, objective, self.sweep, self.ledger)
        self.gradients = _Gradients(self.sweep, wanted, options.group)
        self._objective = objective
        self.token_weights, self._advantages, self._old = (
            None if each is None else self.sweep.rows.pick(each).to(self.sweep.dtype)
            for each in (objective.token_weights, objective.advantages, objective.old_log_probs)
        )

    def run(self) -> None:
        """Walk the chunks."""
        has_open = False
        for chunk in self.sweep.chunks:
            inputs = self.sweep.read(chunk)
            stats = self.sweep.measure(inputs, chunk)
            self.ledger.record(chunk, stats)
            self.running.update(chunk)
            if not self._is_wanted:
                continue
            if has_open and self.running.num_known > chunk.first_rank:
                self.gradients.settle(self.running.weights[chunk.first_rank])
            num_open = chunk.num_open if self._waits else 0
            self._take_back(chunk, inputs, stats, num_open)
            has_open = num_open > 0

    def loss(self) -> Tensor:
        """Reduce every term over the rows of the plan, after the walk.

        Returns:
            Scalar.
        """
        rows, stats, objective = self.sweep.rows, self.ledger.stats, self._objective
        policy = self.policy(stats.student_log_probs, slice(None))
        terms = loss_terms(
            stats,
            self.running.per_step(),
            has_reference=self.sweep.heads.reference is not None,
            policy_term=None if policy is None else policy[0],
            kl_coefficient=objective.kl_coefficient,
            entropy_coefficient=objective.entropy_coefficient,
        )
        return reduce_loss(
            terms,
            rows.steps[rows.ranks],
            self.running.statistics(rows.steps.shape[0]),
            token_weights=self.token_weights,
            reduction=objective.reduction,
            denominator=objective.denominator,
        )

    def policy(self, log_probs: Tensor, rows: slice) -> tuple[Tensor, Tensor] | None:
        """The policy's term and slope of some rows of the plan; None without one."""
        if self._advantages is None or self._old is None:
            return None
        return policy_terms(
            log_probs,
            self._old[rows],
            self._advantages[rows],
            clip_low=self._objective.clip_low,
            clip_high=self._objective.clip_high,
            dual_clip=self._objective.dual_clip,
        )

    def _take_back(self, chunk: Chunk, inputs: ChunkInputs, stats: TokenStats, num_open: int) -> None:
        """Differentiate a chunk: the rows of complete steps, then those of the open one part by part."""
        hidden = self.sweep.student_hidden(chunk)
        unit = self._unit(chunk, stats)
        border = chunk.num_rows - num_open
        closed, opened = slice(0, border), slice(border, chunk.num_rows)
        ranks = self.sweep.rows.ranks[chunk.begin : chunk.end]
        if border:
            weights = self.running.weights[ranks].unsqueeze(0)
            upstream = TokenGradients(
                unit.token_kl * weights,
                unit.token_reference_kl * reference_weights(weights)
                if unit.token_reference_kl.numel()
                else unit.token_reference_kl,
                unit.student_log_probs,
                unit.student_entropy,
            )
            grad = self.sweep.differentiate(_rows(upstream, closed), inputs, stats.row_state, closed)
            self.gradients.add(grad, hidden[closed], chunk.begin)
        if num_open:
            parts = self._parts(_rows(unit, opened))
            for number, (part, upstream) in enumerate(parts, start=1):
                grad = self.sweep.differentiate(
                    upstream, inputs, stats.row_state, opened, keeps_logits=number < len(parts)
                )
                if part is None:
                    self.gradients.add(grad, hidden[opened], chunk.begin + border)
                else:
                    self.gradients.wait(part, grad, hidden[opened], chunk.begin + border)

    def _unit(self, chunk: Chunk, stats: TokenStats) -> TokenGradients:
        """Gradients of the loss in the outputs of a chunk, (1, C), for step weights of 1."""
        objective, rows = self._objective, slice(chunk.begin, chunk.end)
        share = self.running.shares[self.sweep.rows.ranks[rows]]
        if self.token_weights is not None:
            share = share * self.token_weights[rows]
        share = share.unsqueeze(0)
        policy = self.policy(stats.student_log_probs[0], rows) if self._advantages is not None else None
        log_prob = torch.zeros_like(stats.student_log_probs) if policy is None else share * policy[1]
        divergence = share * objective.kl_coefficient
        has_reference = self.sweep.heads.reference is not None
        return TokenGradients(
            token_kl=divergence,
            token_reference_kl=divergence if has_reference else stats.token_reference_kl,
            student_log_probs=log_prob,
            student_entropy=share * -objective.entropy_coefficient,
        )

    def _parts(self, unit: TokenGradients) -> list[tuple[str | None, TokenGradients]]:
        """Take apart what waits for a weight, each by itself, and what does not (None)."""
        nothing = TokenGradients(*(torch.zeros_like(each) for each in unit))
        parts: list[tuple[str | None, TokenGradients]] = [
            ("token_kl", nothing._replace(token_kl=unit.token_kl))
        ]
        if self.sweep.heads.reference is not None:
            reference = nothing._replace(token_reference_kl=unit.token_reference_kl)
            parts.append(("token_reference_kl", reference))
        if self._has_direct:
            direct = unit._replace(token_kl=nothing.token_kl, token_reference_kl=nothing.token_reference_kl)
            parts.append((None, direct))
        return parts


def _rows(upstream: TokenGradients, rows: slice) -> TokenGradients:
    """Gradients of some rows of a chunk; those of absent outputs have shape (0,)."""
    return TokenGradients(*(each[:, rows] if each.dim() == 2 else each for each in upstream))


def run_single_sweep(
    inputs: LinearInputs, options: LinearOptions, objective: Objective, wanted: Wanted
) -> SingleSweepResult:
    """Compute loss, token outputs and gradients.

    Args:
        inputs: Tensors.
        options: Numbers and names of the sweep.
        objective: What makes the loss.
        wanted: Which gradients are asked for; none of them for the loss alone.

    Returns:
        Everything, token tensors (N,).
    """
    walk = SingleSweep(inputs, options, objective, wanted)
    walk.run()
    outputs = walk.ledger.outputs()
    hidden, weight, bias = walk.gradients.finished()
    return SingleSweepResult(
        loss=walk.loss(),
        token_kl=outputs.token_kl,
        token_reference_kl=outputs.token_reference_kl,
        student_log_probs=outputs.student_log_probs,
        teacher_log_probs=outputs.teacher_log_probs,
        student_entropy=outputs.student_entropy,
        step_sums=outputs.step_sums,
        step_weights=walk.running.per_step(),
        grad_hidden=hidden,
        grad_weight=weight,
        grad_bias=bias,
    )
