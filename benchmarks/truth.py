"""Loss and gradients in float64, written apart from the package, and how far a result lies from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.inputs import HiddenInputs, Inputs, Rows, TopKInputs

_TILE = 8192
_DELTA, _EPSILON = 0.2, 1e-6


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How far one result lies from the truth.

    Attributes:
        loss: Relative error of the loss.
        gradient: Norm of the gradient's error over the norm of the gradient, the worst of the leaves; None
            where no gradient was asked for.
    """

    loss: float
    gradient: float | None


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The mean divergence over all rows, and its gradient.

    Attributes:
        loss: In nats.
        row_gradients: (R, V) float64 with respect to the logits of one row that repeats distinct row r.
    """

    loss: float
    row_gradients: Tensor


class TruthOf:
    """The truths of one case; those asked for are computed once."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._known: dict[tuple[str, bool], Truth] = {}
        firsts = inputs.rows.firsts()
        self._student = inputs.student.detach()[firsts].double()
        if isinstance(inputs, HiddenInputs):
            self._logits = _project(self._student, inputs.student_head.detach())
            self._teacher = _project(inputs.teacher[firsts].double(), inputs.teacher_head)
        elif isinstance(inputs, TopKInputs):
            self._logits, self._teacher = self._student, inputs.teacher_log_probs[firsts].double()
        else:
            self._logits, self._teacher = self._student, inputs.teacher[firsts].double()

    def truth(self, divergence: str, *, is_weighted: bool) -> Truth:
        """Compute loss and gradient.

        Args:
            divergence: "reverse_kl" or "forward_kl".
            is_weighted: Whether tokens are weighted by SOD's step weights.

        Returns:
            The truth.
        """
        key = (divergence, is_weighted)
        if key not in self._known:
            self._known[key] = self._compute(*key)
        return self._known[key]

    def errors(
        self, loss: Tensor, gradients: tuple[Tensor, ...] | None, divergence: str, *, is_weighted: bool
    ) -> Errors:
        """Compare a result with the truth.

        Args:
            loss: Scalar.
            gradients: One per leaf of the inputs, or None.
            divergence: What the contestant computes.
            is_weighted: Whether it weighs the steps.

        Returns:
            Relative errors; infinite where the result is not finite.
        """
        truth = self.truth(divergence, is_weighted=is_weighted)
        loss_error = _finite(abs(float(loss.detach()) - truth.loss) / truth.loss)
        if gradients is None:
            return Errors(loss=loss_error, gradient=None)
        return Errors(loss=loss_error, gradient=max(self._gradient_errors(gradients, truth)))

    def _compute(self, divergence: str, is_weighted: bool) -> Truth:
        rows = self._inputs.rows
        logits = self._logits.clone().requires_grad_()
        if isinstance(self._inputs, TopKInputs):
            ids = self._inputs.teacher_ids[rows.firsts()]
            log_p, log_q = _bucket(logits, ids), _with_tail(self._teacher)
        else:
            log_p, log_q = logits.log_softmax(-1), self._teacher.log_softmax(-1)
        if divergence == "forward_kl":
            values = (log_q.exp() * (log_q - log_p)).sum(-1)
        else:
            values = (log_p.exp() * (log_p - log_q)).sum(-1)
        counts = rows.counts().double()
        weights = _sod_weights(values.detach(), rows) if is_weighted else torch.ones_like(counts)
        total = counts.sum()
        loss = (counts * weights * values).sum() / total
        (gradient,) = torch.autograd.grad((weights * values).sum() / total, logits)
        return Truth(loss=float(loss.detach()), row_gradients=gradient)

    def _gradient_errors(self, gradients: tuple[Tensor, ...], truth: Truth) -> list[float]:
        rows = self._inputs.rows
        if not isinstance(self._inputs, HiddenInputs):
            # The first and the last repetition of every distinct row, so that a row's place plays its part.
            firsts = rows.firsts()
            places = torch.cat([firsts, firsts + rows.counts() - 1])
            return [_relative(gradients[0][places].double(), truth.row_gradients.repeat(2, 1))]
        head = self._inputs.student_head.detach()
        expected = torch.zeros_like(self._student)
        upstream = truth.row_gradients * rows.counts().double()[:, None]
        missed, size = 0.0, 0.0
        for start in range(0, head.shape[0], _TILE):
            tile = slice(start, start + _TILE)
            expected += truth.row_gradients[:, tile] @ head[tile].double()
            head_gradient = upstream[:, tile].t() @ self._student
            missed += float((gradients[1][tile].double() - head_gradient).square().sum())
            size += float(head_gradient.square().sum())
        return [_relative(gradients[0].double(), expected[rows.source]), _finite((missed / size) ** 0.5)]


def _project(hidden: Tensor, head: Tensor) -> Tensor:
    """Multiply (R, d) float64 with a head (V, d) of any dtype, without a float64 copy of all of it."""
    tiles = [hidden @ head[start : start + _TILE].double().t() for start in range(0, head.shape[0], _TILE)]
    return torch.cat(tiles, dim=1)


def _bucket(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (R, K + 1) of the listed ids and of everything else together."""
    log_probs = logits.log_softmax(-1)
    rest = log_probs.scatter(1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(1, ids), rest], dim=1)


def _with_tail(log_probs: Tensor) -> Tensor:
    return torch.cat([log_probs, torch.log1p(-log_probs.exp().sum(-1, keepdim=True))], dim=1)


def _sod_weights(values: Tensor, rows: Rows) -> Tensor:
    """SOD's weight (R,) of the step of each distinct row; all steps are of one trajectory."""
    counts, step = rows.counts().double(), rows.step_of_source()
    sums = torch.zeros(rows.num_steps, dtype=values.dtype, device=values.device)
    tokens = sums.index_add(0, step, counts)
    means = sums.index_add(0, step, counts * values) / tokens
    weights = ((means[0] + _EPSILON) / (means + _EPSILON)).clamp(max=1 + _DELTA)
    weights[0] = 1.0
    return weights[step]


def _relative(value: Tensor, expected: Tensor) -> float:
    return _finite(float((value - expected).norm() / expected.norm()))


def _finite(error: float) -> float:
    return math.inf if math.isnan(error) else error
