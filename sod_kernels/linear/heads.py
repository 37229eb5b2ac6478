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

_TILE_ENTRIES = 1 << 22


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
    """The weight in the computing dtype: whole if that is its own, else a few megabytes at a time."""
    num_columns = weight.shape[0]
    # At least 1, for a shard may hold no valid column.
    size = max(1, num_columns if weight.dtype == dtype else _TILE_ENTRIES // weight.shape[1])
    for begin in range(0, num_columns, size):
        tile = slice(begin, min(begin + size, num_columns))
        yield tile, weight[tile].to(dtype)


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
        weight: (V, H) in the computing dtype, None where it is not wanted.
        bias: (V,) likewise.
    """

    def __init__(self, head: Head, wanted: Wanted, dtype: torch.dtype) -> None:
        """Start at zero.

        Args:
            head: The student's.
            wanted: Which gradients are asked for.
            dtype: Of the sums.
        """
        self._head = head
        self._wants_hidden = wanted.hidden
        self.weight = torch.zeros_like(head.weight, dtype=dtype) if wanted.weight else None
        self.bias = head.weight.new_zeros(head.weight.shape[0], dtype=dtype) if wanted.bias else None

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

    def _add_tiles(self, grad: Tensor, hidden: Tensor) -> Tensor | None:
        scale = self._head.scale
        if self.weight is not None:
            self.weight[: grad.shape[1]].addmm_(grad.T, hidden.to(grad.dtype), alpha=scale)
        if not self._wants_hidden:
            return None
        of_hidden = grad.new_zeros(grad.shape[0], hidden.shape[1])
        for columns, tile in _tiles(self._head.weight[: grad.shape[1]], grad.dtype):
            of_hidden.addmm_(grad[:, columns], tile, alpha=scale)
        return of_hidden

    def _add_halves(self, grad: Tensor, hidden: Tensor) -> Tensor | None:
        """Multiply on bfloat16 matrix units, without losing the gradient's precision or a walk over sums."""
        scale, width = self._head.scale, grad.shape[1]
        halves = split_in_two(grad, hidden.dtype)
        if self.weight is not None:
            total, twice = self.weight[:width], torch.cat((hidden, hidden))
            torch.addmm(total, halves.T, twice, out_dtype=grad.dtype, alpha=scale, out=total)
        if not self._wants_hidden:
            return None
        high, low = torch.mm(halves, self._head.weight[:width], out_dtype=grad.dtype).chunk(2)
        return high.add_(low).mul_(scale)

    def add_scaled(self, other: HeadGradients, factor: Tensor) -> None:
        """Add other sums times a factor, and set those to zero.

        Args:
            other: Sums of the same head.
            factor: Scalar tensor.
        """
        for ours, theirs in ((self.weight, other.weight), (self.bias, other.bias)):
            if ours is not None and theirs is not None:
                ours.addcmul_(theirs, factor)
                theirs.zero_()
