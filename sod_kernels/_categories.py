"""A teacher known by a list of ids per token: the list as categories, and divergences over them.

All of it is (..., K + 1) torch arithmetic in float64 that autograd differentiates: next to the one walk over
the student's vocabulary it costs nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels.types import DivergenceSpec

TAILS = ("bucket", "renormalise", "drop")


class TeacherList(NamedTuple):
    """What the teacher said, each id once.

    Attributes:
        log_probs: (..., K) float64, 0 where there is no id.
        ids: (..., K) int64, -1 where there is no id.
        is_there: (..., K) bool.
        tail: (...) float64, log of the mass that is not in the list.
        is_full: (...) bool, whether the list is the whole vocabulary, so that there is no tail.
    """

    log_probs: Tensor
    ids: Tensor
    is_there: Tensor
    tail: Tensor
    is_full: Tensor


class Categories(NamedTuple):
    """Both sides over the same categories, (..., C); `is_there` says which of them a token has."""

    log_p: Tensor
    log_q: Tensor
    is_there: Tensor


def read_teacher(log_probs: Tensor, ids: Tensor, is_active: Tensor, vocab_size: int) -> TeacherList:
    """Read the teacher's lists: of an id that occurs several times the entry of largest log-prob counts.

    Args:
        log_probs: (..., K) floating.
        ids: (..., K) integer, negative where absent.
        is_active: (...) bool, whether the token is in a step; the others' lists are not read.
        vocab_size: Number of valid columns.

    Returns:
        The lists, detached.
    """
    ids = ids.detach().to(torch.int64)
    is_there = (ids >= 0) & is_active[..., None]
    values = torch.where(is_there, log_probs.detach().double(), -torch.inf)
    # By id, and within an id from the largest value down: every entry after an equal id is a repetition.
    by_value = values.argsort(dim=-1, descending=True, stable=True)
    order = by_value.gather(-1, ids.gather(-1, by_value).argsort(dim=-1, stable=True))
    ranked = ids.gather(-1, order)
    is_again = torch.zeros_like(is_there)
    is_again[..., 1:] = ranked[..., 1:] == ranked[..., :-1]
    is_there = is_there & ~torch.zeros_like(is_there).scatter(-1, order, is_again)
    return TeacherList(
        log_probs=torch.where(is_there, values, 0.0),
        ids=torch.where(is_there, ids, -1),
        is_there=is_there,
        tail=_log_tail(values, is_there, torch.finfo(log_probs.dtype).eps),
        is_full=is_there.sum(-1) >= vocab_size,
    )


def _log_tail(log_probs: Tensor, is_there: Tensor, unit: float) -> Tensor:
    """Log of the mass outside the list; less than a rounding unit of the numbers given cannot be told from 0.

    The unit in its place keeps a peaked distribution, whose listed mass rounds to 1, from an infinite
    divergence that nobody measured.
    """
    mass = torch.where(is_there, log_probs, -torch.inf).exp().sum(-1)
    return (1.0 - mass).clamp(min=unit).log()


def make_categories(
    student: Tensor, teacher: TeacherList, tail: str, unit: float
) -> tuple[Categories, Tensor]:
    """Bring both sides over the same categories.

    Args:
        student: (..., K) float64 log-probabilities of the teacher's ids.
        teacher: The lists.
        tail: "bucket" adds everything else as one category, "renormalise" makes the ids the whole
            vocabulary, "drop" leaves the rest out.
        unit: Rounding unit of the student's numbers.

    Returns:
        The categories, and (...) bool whether they are void: a side has no mass to renormalise.
    """
    is_there = teacher.is_there
    log_p, log_q = torch.where(is_there, student, 0.0), teacher.log_probs
    is_void = torch.zeros_like(teacher.is_full)
    if tail == "bucket":
        student_tail = _log_tail(log_p, is_there, unit)
        log_p = torch.cat((log_p, student_tail[..., None]), -1)
        log_q = torch.cat((log_q, teacher.tail[..., None]), -1)
        # Without a list, as at tokens in no step, there is nothing to compare.
        has_tail = is_there.any(-1) & ~teacher.is_full
        is_there = torch.cat((is_there, has_tail[..., None]), -1)
    elif tail == "renormalise":
        log_p, no_student = _renormalised(log_p, is_there)
        log_q, no_teacher = _renormalised(log_q, is_there)
        is_void = (no_student | no_teacher) & is_there.any(-1)
    return Categories(log_p, log_q, is_there), is_void


def _renormalised(log_probs: Tensor, is_there: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities given that the token is in the list, and where the list has no mass at all."""
    listed = torch.where(is_there, log_probs, -torch.inf)
    has_none = (listed == -torch.inf).all(-1)
    # The log-sum-exp of nothing has a NaN gradient, so nothing is replaced before it is taken.
    lse = torch.where(has_none[..., None], 0.0, listed).logsumexp(-1, keepdim=True)
    return torch.where(has_none[..., None], 0.0, log_probs - lse), has_none


def divergence(categories: Categories, spec: DivergenceSpec) -> Tensor:
    """Sum a divergence over the categories; +inf, without gradient, where the definition says so.

    Args:
        categories: Both sides.
        spec: Divergence, beta and floor are read.

    Returns:
        (...) float64, not clamped.
    """
    has_p = categories.is_there & (categories.log_p != -torch.inf)
    has_q = categories.is_there & (categories.log_q != -torch.inf)
    # Where a side has no mass its logarithm is replaced before anything is differentiated through it.
    log_p = torch.where(has_p, categories.log_p, 0.0)
    log_q = torch.where(has_q, categories.log_q, 0.0)
    p, q = torch.where(has_p, log_p.exp(), 0.0), torch.where(has_q, log_q.exp(), 0.0)
    if spec.divergence == "jsd":
        weight_p, weight_q = math.log1p(-spec.beta), math.log(spec.beta)
        one_side = torch.where(has_p, log_p + weight_p, log_q + weight_q)
        both_sides = torch.logaddexp(log_p + weight_p, log_q + weight_q)
        mixture = torch.where(has_p & has_q, both_sides, one_side)
        terms = (1.0 - spec.beta) * p * (log_p - mixture) + spec.beta * q * (log_q - mixture)
        return terms.sum(-1)
    if spec.divergence == "reverse_kl":
        return _kl(p, log_p, log_q, has_p, has_q, spec.min_log_prob)
    return _kl(q, log_q, log_p, has_q, has_p, spec.min_log_prob)


def _kl(
    mass: Tensor,
    log_mass: Tensor,
    log_other: Tensor,
    has_mass: Tensor,
    has_other: Tensor,
    floor: float | None,
) -> Tensor:
    """Sum mass (log mass - log other), the other's logarithm at least the floor."""
    if floor is not None:
        divisor = torch.where(has_other, log_other.clamp(min=floor), floor)
        return (mass * (log_mass - divisor)).sum(-1)
    is_infinite = (has_mass & ~has_other).any(-1)
    return torch.where(is_infinite, torch.inf, (mass * (log_mass - log_other)).sum(-1))


def reported(value: Tensor) -> Tensor:
    """Lift a rounding error below 0 to 0, and leave the gradient as it is.

    Args:
        value: (...) of a divergence that is never negative.

    Returns:
        (...) at least 0.
    """
    return value - value.detach().clamp(max=0.0)


def is_listed(teacher: TeacherList, sampled_ids: Tensor) -> Tensor:
    """Say which sampled tokens are in the teacher's lists.

    Args:
        teacher: The lists.
        sampled_ids: (...) int64.

    Returns:
        (...) bool.
    """
    return _matches(teacher, sampled_ids).any(-1)


def teacher_log_probs(teacher: TeacherList, sampled_ids: Tensor, spec: DivergenceSpec) -> Tensor:
    """Look the sampled tokens up in the teacher's lists.

    Args:
        teacher: The lists.
        sampled_ids: (...) int64.
        spec: The floor is read.

    Returns:
        (...) log-probability; where the token is not in the list that of the tail, which holds the token.
    """
    is_it = _matches(teacher, sampled_ids)
    log_probs = torch.where(is_it, teacher.log_probs, 0.0).sum(-1)
    log_probs = torch.where(is_it.any(-1), log_probs, teacher.tail)
    return log_probs if spec.min_log_prob is None else log_probs.clamp(min=spec.min_log_prob)


def _matches(teacher: TeacherList, sampled_ids: Tensor) -> Tensor:
    return teacher.is_there & (teacher.ids == sampled_ids[..., None])
