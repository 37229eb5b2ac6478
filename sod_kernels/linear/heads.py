"""One model's output head: from hidden states to the logits of a chunk, and gradients back.

Logits are z = scale (h W^T) + b, then softcap tanh(z / softcap) where a softcap is set. They are made in
float32 (float64 where any input is float64), never rounded to the dtype of the hidden states: rounding logits
to bfloat16 alone costs the gradient several percent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels.native import memory

_TILE_ENTRIES = 1 << 20


class Head(NamedTuple):
    """A model's output head and what goes into it.

    Attributes:
        hidden: (N, H) hidden states, floating.
        weight: (V, H) of the same dtype, as in `torch.nn.Linear`.
        bias: (V,) or None.
        scale: Factor of the product, before the bias.
        softcap: Bound of the logits, above 0, or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


def _tiles(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The weight in the computing dtype: whole if that is its own, else a few megabytes at a time.

    A tile is valid until the next one.
    """
    num_columns = weight.shape[0]
    if weight.dtype == dtype:
        yield slice(0, num_columns), weight
        return
    size = max(1, _TILE_ENTRIES // weight.shape[1])
    scratch = weight.new_empty(min(size, num_columns), weight.shape[1], dtype=dtype)
    for begin in range(0, num_columns, size):
        columns = slice(begin, min(begin + size, num_columns))
        yield columns, scratch[: columns.stop - begin].copy_(weight[columns])


def _has_mixed_product(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether matrix units multiply bfloat16 and add up in float32, without a copy of the weight."""
    return tensor.is_cuda and tensor.dtype == torch.bfloat16 and dtype == torch.float32


def project(head: Head, hidden: Tensor, out: Tensor) -> None:
    """Compute the logits of some rows.

    Args:
        head: The head.
        hidden: (C, H) rows of its hidden states.
        out: (C, vocab_size) contiguous float32 or float64, takes the logits.
    """
    width = out.shape[1]
    if _has_mixed_product(hidden, out.dtype):
        torch.mm(hidden, head.weight[:width].T, out_dtype=out.dtype, out=out)
        if head.scale != 1.0:
            out.mul_(head.scale)
        if head.bias is not None:
            out.add_(head.bias[:width])
    else:
        rows = hidden.to(out.dtype)
        for columns, tile in _tiles(head.weight[:width], out.dtype):
            part = out[:, columns]
            if head.bias is None:
                torch.addmm(part, rows, tile.T, beta=0.0, alpha=head.scale, out=part)
            else:
                torch.addmm(head.bias[columns].to(out.dtype), rows, tile.T, alpha=head.scale, out=part)
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)


def apply_softcap_slope(grad: Tensor, logits: Tensor, softcap: float) -> None:
    """Take a gradient of capped logits back to the logits before the cap, in place.

    Args:
        grad: (C, V) gradient, changed in place.
        logits: (C, V) capped logits z: the slope is 1 - (z / softcap)^2.
        softcap: Bound of the logits.
    """
    rows = max(1, _TILE_ENTRIES // max(1, logits.shape[1]))
    for begin in range(0, logits.shape[0], rows):
        capped = logits[begin : begin + rows]
        slope = torch.ones_like(capped).addcmul_(capped, capped, value=-1.0 / softcap**2)
        # Where a column was taken out its logit is -inf, and its gradient 0.
        slope.clamp_(min=0.0)
        grad[begin : begin + rows].mul_(slope)


def split_in_two(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Write numbers as sums of two of a lower precision: the rounded value and what that leaves over.

    One bfloat16 number alone would be off by 1.5e-3 of the norm.

    Args:
        values: (C, V) float32.
        dtype: Of the parts.

    Returns:
        (2 C, V): the rounded values above what they leave over.
    """
    num_rows = values.shape[0]
    parts = values.new_empty(2 * num_rows, values.shape[1], dtype=dtype)
    parts[:num_rows].copy_(values)
    torch.sub(values, parts[:num_rows], out=parts[num_rows:])
    return parts


class Wanted(NamedTuple):
    """Which gradients of the student's head somebody asks for."""

    hidden: bool
    weight: bool
    bias: bool


class HeadGradients:
    """Takes gradients of chunk logits back through the student's head; sums those of weight and bias.

    Attributes:
        bias: (V,) in the computing dtype, None where it is not wanted.
    """

    def __init__(self, head: Head, wanted: Wanted, dtype: torch.dtype) -> None:
        """Start with empty sums.

        Args:
            head: The student's.
            wanted: Which gradients are asked for.
            dtype: Of the sums.
        """
        self._head = head
        self._wants_hidden = wanted.hidden
        weight = head.weight
        # Written by the first product: filling it with zeros first would be two more walks over it.
        self._weight = memory.empty(weight.shape, dtype, weight.device) if wanted.weight else None
        self._is_written = False
        self.bias = weight.new_zeros(weight.shape[0], dtype=dtype) if wanted.bias else None

    @property
    def weight(self) -> Tensor | None:
        """(V, H) in the computing dtype, None where it is not wanted."""
        if self._weight is not None and not self._is_written:
            self._weight.zero_()
            self._is_written = True
        return self._weight

    def add(self, grad: Tensor, hidden: Tensor) -> Tensor | None:
        """Add the gradient of some rows to the sums.

        Args:
            grad: (C, vocab_size) gradient of the logits before the softcap, float32 or float64.
            hidden: (C, H) rows of the hidden states.

        Returns:
            (C, H) gradient of the hidden states in the dtype of `grad`; None where it is not wanted.
        """
        if self.bias is not None:
            self.bias[: grad.shape[1]].add_(grad.sum(0))
        add = self._add_halves if _has_mixed_product(hidden, grad.dtype) else self._add_tiles
        return add(grad, hidden)

    def _sums(self, weight: Tensor, width: int) -> tuple[Tensor, float]:
        """Sums of the valid columns, and the factor of what they hold: 0 where that is not written yet."""
        factor = 1.0 if self._is_written else 0.0
        if not self._is_written:
            weight[width:].zero_()
            self._is_written = True
        return weight[:width], factor

    def _add_tiles(self, grad: Tensor, hidden: Tensor) -> Tensor | None:
        scale, width = self._head.scale, grad.shape[1]
        if self._weight is not None:
            total, factor = self._sums(self._weight, width)
            torch.addmm(total, grad.T, hidden.to(grad.dtype), beta=factor, alpha=scale, out=total)
        if not self._wants_hidden:
            return None
        of_hidden = grad.new_zeros(grad.shape[0], hidden.shape[1])
        for columns, tile in _tiles(self._head.weight[:width], grad.dtype):
            of_hidden.addmm_(grad[:, columns], tile, alpha=scale)
        return of_hidden

    def _add_halves(self, grad: Tensor, hidden: Tensor) -> Tensor | None:
        """Multiply on bfloat16 matrix units, without losing the gradient's precision or a walk over sums."""
        scale, width = self._head.scale, grad.shape[1]
        halves = split_in_two(grad, hidden.dtype)
        if self._weight is not None:
            total, factor = self._sums(self._weight, width)
            twice = torch.cat((hidden, hidden))
            torch.addmm(total, halves.T, twice, out_dtype=grad.dtype, beta=factor, alpha=scale, out=total)
        if not self._wants_hidden:
            return None
        high, low = torch.mm(halves, self._head.weight[:width], out_dtype=grad.dtype).chunk(2)
        return high.add_(low).mul_(scale)

    def add_scaled(self, other: HeadGradients, factor: Tensor) -> None:
        """Add other sums times a factor, and empty those.

        Args:
            other: Sums of the same head.
            factor: Scalar tensor.
        """
        if self.bias is not None and other.bias is not None:
            self.bias.addcmul_(other.bias, factor)
            other.bias.zero_()
        if self._weight is None or other._weight is None or not other._is_written:
            return
        if self._is_written:
            self._weight.addcmul_(other._weight, factor)
        else:
            torch.mul(other._weight, factor, out=self._weight)
        self._is_written, other._is_written = True, False
