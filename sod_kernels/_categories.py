"""A teacher known by a list of ids per token: the list as categories, and divergences over them.

All of it is (..., K + 1) torch arithmetic in float64: next to the one walk over the student's vocabulary it
costs nothing. Slopes are written out by hand, as a sweep that makes its gradients on the way needs them.
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
    return assemble(
        torch.where(is_there, values, 0.0),
        torch.where(is_there, ids, -1),
        _log_tail(values, is_there, torch.finfo(log_probs.dtype).eps),
        vocab_size=vocab_size,
    )


def assemble(log_probs: Tensor, ids: Tensor, tail: Tensor, *, vocab_size: int) -> TeacherList:
    """Put lists together from what cannot be worked out from the rest.

    Args:
        log_probs: (..., K) float64, 0 where there is no id.
        ids: (..., K) int64, -1 where there is no id, each id once.
        tail: (...) float64, log of the mass that is not in the list.
        vocab_size: Number of valid columns.

    Returns:
        The lists.
    """
    is_there = ids >= 0
    return TeacherList(log_probs, ids, is_there, tail, is_full=is_there.sum(-1) >= vocab_size)


def _log_tail(log_probs: Tensor, is_there: Tensor, unit: float) -> Tensor:
    """Log of the mass outside the list; less than a rounding unit of the numbers given cannot be told from 0.

    The unit in its place keeps a peaked distribution, whose listed mass rounds to 1, from an infinite
    divergence that nobody measured.
    """
    mass = torch.where(is_there, log_probs, -torch.inf).exp().sum(-1)
    return (1.0 - mass).clamp(min=unit).log()


class ListDivergence(NamedTuple):
    """A divergence of the student from the teacher's lists.

    Attributes:
        value: (...) float64, at least 0 except with tail "drop"; +inf where the definition says so.
        slopes: (..., K) float64, its derivatives in the student's log-probabilities of the listed ids; 0
            where there is no id, the student has no mass, or the value is infinite.
    """

    value: Tensor
    slopes: Tensor


def list_divergence(
    student: Tensor, teacher: TeacherList, spec: DivergenceSpec, tail: str, unit: float
) -> ListDivergence:
    """Compare both sides over the teacher's categories.

    Args:
        student: (..., K) float64 log-probabilities of the teacher's ids.
        teacher: The lists.
        spec: Divergence, beta and floor are read.
        tail: "bucket" adds everything else as one category, "renormalise" makes the ids the whole
            vocabulary, "drop" leaves the rest out.
        unit: Rounding unit of the student's numbers.

    Returns:
        Value and slopes, detached.
    """
    student = student.detach()
    categories, is_void = _make_categories(student, teacher, tail, unit)
    value, slopes = _divergence(categories, spec)
    has_mass = teacher.is_there & (student != -torch.inf)
    mass = torch.where(has_mass, student.exp(), 0.0)
    if tail == "bucket":
        rest = (1.0 - mass.sum(-1, keepdim=True)).clamp(min=unit)
        # A tail that counts as the unit does not move.
        of_rest = torch.where(rest > unit, slopes[..., -1:] / rest, 0.0)
        slopes = slopes[..., :-1] - mass * of_rest
    elif tail == "renormalise":
        share = torch.where(has_mass, categories.log_p.exp(), 0.0)
        slopes = slopes - share * slopes.sum(-1, keepdim=True)
    if tail != "drop":
        value = value.clamp(min=0.0)
    value = torch.where(is_void, torch.inf, value)
    slopes = torch.where(has_mass & (value != torch.inf)[..., None], slopes, 0.0)
    return ListDivergence(value, slopes)


def with_slopes(value: Tensor, slopes: Tensor, log_probs: Tensor) -> Tensor:
    """Give a value the derivatives that were worked out for it.

    Args:
        value: (...) of a `ListDivergence`.
        slopes: (..., K) likewise.
        log_probs: (..., K) of which the slopes are the derivatives; with its graph.

    Returns:
        (...) of the same value, which autograd differentiates once.
    """
    moves = torch.where(log_probs.isfinite(), log_probs - log_probs.detach(), 0.0)
    return value + (slopes * moves).sum(-1)


def _make_categories(
    student: Tensor, teacher: TeacherList, tail: str, unit: float
) -> tuple[Categories, Tensor]:
    """Bring both sides over the same categories.

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
    lse = torch.where(has_none[..., None], 0.0, listed).logsumexp(-1, keepdim=True)
    return torch.where(has_none[..., None], 0.0, log_probs - lse), has_none


def _divergence(categories: Categories, spec: DivergenceSpec) -> tuple[Tensor, Tensor]:
    """Sum over the categories, (...), +inf where the definition says so; slopes in log_p, (..., C)."""
    has_p = categories.is_there & (categories.log_p != -torch.inf)
    has_q = categories.is_there & (categories.log_q != -torch.inf)
    # (-inf) - (-inf) is no number, so a logarithm without mass is replaced.
    log_p = torch.where(has_p, categories.log_p, 0.0)
    log_q = torch.where(has_q, categories.log_q, 0.0)
    p, q = torch.where(has_p, log_p.exp(), 0.0), torch.where(has_q, log_q.exp(), 0.0)
    floor = spec.min_log_prob
    if spec.divergence == "jsd":
        weight_p, weight_q = math.log1p(-spec.beta), math.log(spec.beta)
        one_side = torch.where(has_p, log_p + weight_p, log_q + weight_q)
        both_sides = torch.logaddexp(log_p + weight_p, log_q + weight_q)
        mixture = torch.where(has_p & has_q, both_sides, one_side)
        of_student = (1.0 - spec.beta) * p * (log_p - mixture)
        return (of_student + spec.beta * q * (log_q - mixture)).sum(-1), of_student
    if spec.divergence == "reverse_kl":
        divisor = log_q if floor is None else torch.where(has_q, log_q.clamp(min=floor), floor)
        terms = p * (log_p - divisor)
        return _sum(terms, has_p & ~has_q, floor), terms + p
    divisor = log_p if floor is None else torch.where(has_p, log_p.clamp(min=floor), floor)
    moves = has_p if floor is None else has_p & (log_p > floor)
    return _sum(q * (log_q - divisor), has_q & ~has_p, floor), torch.where(moves, -q, 0.0)


def _sum(terms: Tensor, is_infinite: Tensor, floor: float | None) -> Tensor:
    """Add up the terms of a KL, which without a floor is infinite where the other side has no mass."""
    total = terms.sum(-1)
    return total if floor is not None else torch.where(is_infinite.any(-1), torch.inf, total)


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
