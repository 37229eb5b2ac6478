"""Other ways to compare units of two tokenisers: the formulas, in plain torch with autograd.

Rows are log-probabilities over a whole vocabulary; what is made here has the size of units times columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# TRL's floor under the probabilities of matched columns.
_LEAST_PROBABILITY = 1e-8
# A log-probability of 0 has no logarithm of its own; an amount that single precision still tells from 0.
_NEAREST_TO_ZERO = -1e-6


def sorted_distance(student: Tensor, teacher: Tensor, topk: int | None) -> Tensor:
    """Compare two rows of masses by rank alone: sum of |difference| of the sorted rows.

    Args:
        student: (U, A) masses.
        teacher: (U, B) masses; the narrower side is filled up with zeros.
        topk: Compare this many of the largest and, as one more, the rest; None for all.

    Returns:
        (U,).
    """
    sides = []
    for masses in (student, teacher):
        if topk is None or topk >= masses.shape[-1]:
            sides.append(masses.sort(-1, descending=True).values)
        else:
            largest = masses.topk(topk, dim=-1).values
            rest = masses.sum(-1, keepdim=True) - largest.sum(-1, keepdim=True)
            sides.append(torch.cat((largest, rest), -1))
    width = max(side.shape[-1] for side in sides)
    one, other = (torch.nn.functional.pad(side, (0, width - side.shape[-1])) for side in sides)
    return (one - other).abs().sum(-1)


def merged_divergence(
    student: Tensor, teacher: Tensor, columns: tuple[Tensor, Tensor], divergence: str, beta: float
) -> Tensor:
    """Compare the masses of paired columns as they are, without normalising them again.

    Args:
        student: (U, A) log-masses.
        teacher: (U, B) log-masses.
        columns: (C,) of student and teacher.
        divergence: "reverse_kl", "forward_kl" or "jsd".
        beta: Weight of the teacher, for "jsd".

    Returns:
        (U,).
    """
    floor = math.log(_LEAST_PROBABILITY)
    one, other = (
        rows.index_select(-1, listed).clamp(min=floor)
        for rows, listed in zip((student, teacher), columns, strict=True)
    )
    if divergence != "jsd":
        first, second = (one, other) if divergence == "reverse_kl" else (other, one)
        return (first.exp() * (first - second)).sum(-1)
    mixture = torch.logaddexp(one + math.log1p(-beta), other + math.log(beta))
    terms = beta * other.exp() * (other - mixture) + (1.0 - beta) * one.exp() * (one - mixture)
    return terms.sum(-1)


def without_columns(rows: Tensor, columns: Tensor) -> Tensor:
    """Take the masses of all other columns.

    Args:
        rows: (U, A) log-masses.
        columns: (C,) that are left out.

    Returns:
        (U, A - C) masses.
    """
    is_other = torch.ones(rows.shape[-1], dtype=torch.bool, device=rows.device)
    is_other[columns] = False
    return rows[:, is_other].exp()


def binary_divergence(
    student: Tensor, teacher: Tensor, divergence: str, chunk_temperature: float | None
) -> Tensor:
    r"""Compare what both sides think of a unit being written: an event, and its opposite.

    Args:
        student: (U,) log-probability of the unit.
        teacher: (U,) the teacher's.
        divergence: "forward_kl" (teacher to student), "reverse_kl" or "total_variation".
        chunk_temperature: Divides the log-probabilities; None for the limit of the divergence times the
            temperature as that grows.

    Returns:
        (U,).
    """
    one, other = (each.clamp(max=_NEAREST_TO_ZERO) for each in (student, teacher))
    if chunk_temperature is not None:
        one, other = one / chunk_temperature, other / chunk_temperature
    if divergence == "total_variation":
        gap = other - one if chunk_temperature is None else other.exp() - one.exp()
        return 2.0 * gap.abs()
    first, second = (other, one) if divergence == "forward_kl" else (one, other)
    if chunk_temperature is None:
        return (first - second) + first * (second / first).log()
    opposite, of_second = (-torch.expm1(first), -torch.expm1(second))
    return first.exp() * (first - second) + opposite * (opposite.log() - of_second.log())
