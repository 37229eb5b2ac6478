"""A teacher known by a list of ids per token: the list as categories, and divergences over them.

All of it is (..., K) torch arithmetic in float64. It costs the same whatever the vocabulary, so that at a
small one it would weigh more than the walk over the student's logits: on the CPU the native backend's library
does the same in one pass (`sod_kernels.native.lists`). A category that a token lacks has no mass on either
side, -inf, and so adds nothing anywhere. Slopes are written out by hand, as a sweep that makes its gradients
on the way needs them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sod_kernels.segments import step_sums
from sod_kernels.types import DivergenceSpec, LogProbStats

TAILS = ("bucket", "renormalise", "drop")


class TeacherList(NamedTuple):
    """What the teacher said, each id once.

    Attributes:
        log_probs: (..., K) float64, -inf where there is no id.
        ids: (..., K) int64, negative where there is no id.
        tail: (...) float64, log of the mass that is not in the list.
        vocab_size: Number of valid columns; a list of as many has no tail.
    """

    log_probs: Tensor
    ids: Tensor
    tail: Tensor
    vocab_size: int

    @property
    def is_there(self) -> Tensor:
        """(..., K) bool."""
        return self.ids >= 0


class ListStats(NamedTuple):
    """What comes of holding the student against lists; nothing has a graph.

    Attributes:
        token_kl: (...) in the dtype of the student's log-probabilities; at least 0 except with tail "drop",
            +inf where the definition says so.
        slopes: (..., K) float64, its derivatives in the student's log-probabilities of the listed ids; 0
            where there is no id, the student has no mass, or the value is infinite.
        teacher_log_probs: (...) of the sampled ids, dtype of `token_kl`; (0,) without.
        step_sums: (S, 5) as `TokenStats` has them.
    """

    token_kl: Tensor
    slopes: Tensor
    teacher_log_probs: Tensor
    step_sums: Tensor


class Categories(NamedTuple):
    """Both sides over the same categories, (..., C); -inf on both where a token lacks one."""

    log_p: Tensor
    log_q: Tensor
    p: Tensor


def listed_ids(ids: Tensor, is_active: Tensor) -> Tensor:
    """Mark what is not read.

    Args:
        ids: (..., K) integer, negative where absent.
        is_active: (...) bool, whether the token is in a step; the others' lists are not read.

    Returns:
        (..., K) int64, negative where nothing is read; detached.
    """
    return torch.where(is_active[..., None], ids.detach().to(torch.int64), -1)


def read_teacher(log_probs: Tensor, ids: Tensor, vocab_size: int) -> tuple[TeacherList, Tensor]:
    """Read the teacher's lists: of an id that occurs several times the entry of largest log-prob counts.

    Args:
        log_probs: (..., K) floating.
        ids: (..., K) from `listed_ids`.
        vocab_size: Number of valid columns.

    Returns:
        The lists, detached; and the mass that each token's adds up to, (...) float64.
    """
    values = torch.where(ids >= 0, log_probs.detach().double(), -torch.inf)
    is_again = _is_again(values, ids)
    values, ids = torch.where(is_again, -torch.inf, values), torch.where(is_again, -1, ids)
    mass = values.exp().sum(-1)
    tail = _tail(mass, torch.finfo(log_probs.dtype).eps).log()
    return TeacherList(values, ids, tail, vocab_size), mass


def _is_again(values: Tensor, ids: Tensor) -> Tensor:
    """Which entries have an id that another entry of the same list stands for."""
    # By id, and within an id from the largest value down: every entry after an equal id is a repetition.
    by_value = values.argsort(dim=-1, descending=True, stable=True)
    order = by_value.gather(-1, ids.gather(-1, by_value).argsort(dim=-1, stable=True))
    ranked = ids.gather(-1, order)
    is_again = torch.zeros_like(ids, dtype=torch.bool)
    is_again[..., 1:] = ranked[..., 1:] == ranked[..., :-1]
    return torch.zeros_like(is_again).scatter(-1, order, is_again)


def _tail(mass: Tensor, unit: float) -> Tensor:
    """Mass outside a list; less than a rounding unit of the numbers given cannot be told from 0.

    The unit in its place keeps a peaked distribution, whose listed mass rounds to 1, from an infinite
    divergence that nobody measured.
    """
    return (1.0 - mass).clamp(min=unit)


def compare_lists(
    swept: LogProbStats,
    teacher: TeacherList,
    sampled_ids: Tensor | None,
    step_ids: Tensor,
    num_steps: int,
    spec: DivergenceSpec,
    tail: str,
) -> ListStats:
    """Hold the student against the teacher's lists.

    Args:
        swept: Log-probabilities of the lists' ids and, behind them, of the sampled ones.
        teacher: The lists.
        sampled_ids: (...) int64, or None.
        step_ids: (...) int64, -1 in no step.
        num_steps: S.
        spec: Divergence, beta and floor are read.
        tail: "bucket" adds everything else as one category, "renormalise" makes the ids the whole
            vocabulary, "drop" leaves the rest out.

    Returns:
        The statistics.
    """
    dtype, num_ids = swept.log_probs.dtype, teacher.ids.shape[-1]
    log_probs = swept.log_probs.detach()
    unit = torch.finfo(dtype).eps
    value, slopes = _list_divergence(log_probs[..., :num_ids].double(), teacher, spec, tail, unit)
    token_kl, theirs, pair = value.to(dtype), log_probs.new_empty(0), None
    if sampled_ids is not None:
        theirs = _teacher_log_probs(teacher, sampled_ids, spec).to(dtype)
        pair = (log_probs[..., num_ids], theirs)
    sums = step_sums(token_kl, swept.student_entropy, pair, step_ids, num_steps)
    return ListStats(token_kl, slopes, theirs, sums)


def _list_divergence(
    student: Tensor, teacher: TeacherList, spec: DivergenceSpec, tail: str, unit: float
) -> tuple[Tensor, Tensor]:
    """Value and slopes over the teacher's categories, for (..., K) float64 log-probabilities of its ids.

    The unit is the rounding unit of the student's numbers.
    """
    log_p = torch.where(teacher.is_there, student, -torch.inf)
    if tail == "renormalise":
        value, slopes = _renormalised_divergence(log_p, teacher, spec)
    else:
        p = log_p.exp()
        value, slopes = _divergence(Categories(log_p, teacher.log_probs, p), spec)
        if tail == "bucket":
            rest = _rest(p, teacher, unit)
            of_rest, slope = _divergence(rest, spec)
            value = value + of_rest
            # A tail that counts as the unit does not move.
            slopes = slopes - p * torch.where(rest.p > unit, slope / rest.p, 0.0)
    if tail != "drop":
        value = value.clamp(min=0.0)
    return value, torch.where((value == torch.inf)[..., None], 0.0, slopes)


class _WithSlopes(torch.autograd.Function):
    """A value whose derivatives were worked out beside it."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * grad[..., None]).to(grad.dtype), None, None


def with_slopes(stats: ListStats, log_probs: Tensor) -> Tensor:
    """Give a divergence the derivatives that were worked out for it.

    Args:
        stats: Value and slopes.
        log_probs: (..., K) of which the slopes are the derivatives; with its graph.

    Returns:
        (...) of the same value, which autograd differentiates once.
    """
    return cast(Tensor, cast(Any, _WithSlopes).apply(log_probs, stats.token_kl, stats.slopes))


def _rest(p: Tensor, teacher: TeacherList, unit: float) -> Categories:
    """The tail as a category of its own, (..., 1), of which a list of the whole vocabulary has none.

    Nor has an empty one, as at tokens in no step: there is nothing to compare.
    """
    num_ids = teacher.is_there.sum(-1, keepdim=True)
    has_tail = (num_ids > 0) & (num_ids < teacher.vocab_size)
    rest = torch.where(has_tail, _tail(p.sum(-1, keepdim=True), unit), 0.0)
    return Categories(rest.log(), torch.where(has_tail, teacher.tail[..., None], -torch.inf), rest)


def _renormalised_divergence(
    log_p: Tensor, teacher: TeacherList, spec: DivergenceSpec
) -> tuple[Tensor, Tensor]:
    """Value and slopes given that the token is in the list; +inf where a side has no mass to renormalise."""
    log_p, no_student = _renormalised(log_p)
    log_q, no_teacher = _renormalised(teacher.log_probs)
    p = log_p.exp()
    value, slopes = _divergence(Categories(log_p, log_q, p), spec)
    is_void = (no_student | no_teacher) & teacher.is_there.any(-1)
    return torch.where(is_void, torch.inf, value), slopes - p * slopes.sum(-1, keepdim=True)


def _renormalised(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities given that the token is in the list, and where the list has no mass at all."""
    lse = log_probs.logsumexp(-1, keepdim=True)
    has_none = lse == -torch.inf
    return log_probs - torch.where(has_none, 0.0, lse), has_none[..., 0]


def _divergence(categories: Categories, spec: DivergenceSpec) -> tuple[Tensor, Tensor]:
    """Sum over the categories, (...), +inf where the definition says so; slopes in log_p, (..., C)."""
    log_p, log_q, p = categories
    floor = -torch.inf if spec.min_log_prob is None else spec.min_log_prob
    if spec.divergence == "jsd":
        return _jensen_shannon(categories, spec.beta)
    if spec.divergence == "reverse_kl":
        total, terms = _kl(p, log_p, log_q, floor)
        return total, terms + p
    q = log_q.exp()
    # Under the floor the student's side does not move.
    return _kl(q, log_q, log_p, floor)[0], torch.where(log_p <= floor, 0.0, -q)


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """KL(p || q) under a floor of log q, (...), and its terms; +inf where q, without one, lacks mass of p."""
    divisor = log_q if floor == -torch.inf else log_q.clamp(min=floor)
    # (-inf) - (-inf) is no number.
    log_ratio = torch.where(log_p == -torch.inf, 0.0, log_p - divisor)
    terms = p * log_ratio
    total = terms.sum(-1)
    if floor == -torch.inf:
        # Said outright, as the mass may have rounded to 0.
        total = torch.where(log_ratio.amax(-1) == torch.inf, torch.inf, total)
    return total, terms


def _jensen_shannon(categories: Categories, beta: float) -> tuple[Tensor, Tensor]:
    """The Jensen-Shannon divergence, (...), and its slopes in log_p, the student's terms."""
    log_p, log_q, p = categories
    q = log_q.exp()
    has_p, has_q = log_p != -torch.inf, log_q != -torch.inf
    # (-inf) - (-inf) is no number, so a logarithm without mass is replaced.
    log_p, log_q = torch.where(has_p, log_p, 0.0), torch.where(has_q, log_q, 0.0)
    weight_p, weight_q = math.log1p(-beta), math.log(beta)
    one_side = torch.where(has_p, log_p + weight_p, log_q + weight_q)
    both_sides = torch.logaddexp(log_p + weight_p, log_q + weight_q)
    mixture = torch.where(has_p & has_q, both_sides, one_side)
    of_student = (1.0 - beta) * p * (log_p - mixture)
    return (of_student + beta * q * (log_q - mixture)).sum(-1), of_student


def is_listed(teacher: TeacherList, sampled_ids: Tensor) -> Tensor:
    """Say which sampled tokens are in the teacher's lists.

    Args:
        teacher: The lists.
        sampled_ids: (...) int64.

    Returns:
        (...) bool.
    """
    return _matches(teacher, sampled_ids).any(-1)


def _teacher_log_probs(teacher: TeacherList, sampled_ids: Tensor, spec: DivergenceSpec) -> Tensor:
    """Of the sampled tokens, (...); of one outside the list that of the tail, which holds the token."""
    is_it = _matches(teacher, sampled_ids)
    log_probs = torch.where(is_it, teacher.log_probs, 0.0).sum(-1)
    log_probs = torch.where(is_it.any(-1), log_probs, teacher.tail)
    return log_probs if spec.min_log_prob is None else log_probs.clamp(min=spec.min_log_prob)


def _matches(teacher: TeacherList, sampled_ids: Tensor) -> Tensor:
    return teacher.is_there & (teacher.ids == sampled_ids[..., None])
