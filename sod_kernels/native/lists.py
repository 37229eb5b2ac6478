"""Lists of ids in the compiled CPU library: reading a teacher's, and holding the student against them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sod_kernels._categories import TAILS, ListStats, TeacherList
from sod_kernels.native import loader
from sod_kernels.native.arguments import DIVERGENCES, addresses
from sod_kernels.types import DivergenceSpec, LogProbStats, TokenStats

_NUM_STEP_COLUMNS = 5


def read_lists(
    log_probs: Tensor, ids: Tensor, step_ids: Tensor, *, vocab_size: int, most_mass: float
) -> TeacherList | None:
    """Read a teacher's lists in one pass: of an id that occurs several times the largest log-prob counts.

    Args:
        log_probs: (..., K) floating, on the CPU like the others.
        ids: (..., K) integer, negative where absent.
        step_ids: (...) int64, contiguous, -1 in no step; those tokens' lists are not read.
        vocab_size: Number of valid columns.
        most_mass: That the probabilities of a list may add up to.

    Returns:
        The lists, detached; None if an id, a log-probability or a mass is out of range, for others to say
        which.

    Raises:
        NativeUnavailableError: The library cannot run here.
    """
    library = loader.load("cpu")
    # Numbers of 16 bits are exact in float32.
    wide = log_probs.detach().to(torch.promote_types(log_probs.dtype, torch.float32)).contiguous()
    given_ids = ids.detach().to(torch.int64).contiguous()
    read = TeacherList(
        log_probs=torch.empty(ids.shape, dtype=torch.float64),
        ids=torch.empty(ids.shape, dtype=torch.int64),
        tail=torch.empty(step_ids.shape, dtype=torch.float64),
        vocab_size=vocab_size,
    )
    is_double = wide.dtype == torch.float64
    is_good = library.read_lists(
        given=library.GivenLists(
            num_lists=step_ids.numel(),
            num_ids=ids.shape[-1],
            vocab_size=vocab_size,
            step_ids=step_ids.data_ptr(),
            ids=given_ids.data_ptr(),
            log_probs=wide.data_ptr() if is_double else 0,
            float_log_probs=0 if is_double else wide.data_ptr(),
            unit=torch.finfo(log_probs.dtype).eps,
            most_mass=most_mass,
        ),
        lists=_addresses(library, read),
        num_threads=torch.get_num_threads(),
    )
    return read if is_good else None


def compare_lists(
    swept: LogProbStats,
    teacher: TeacherList,
    sampled_ids: Tensor | None,
    step_ids: Tensor,
    num_steps: int,
    spec: DivergenceSpec,
    tail: str,
) -> ListStats:
    """Do what `_categories.compare_lists` does, for float32 log-probabilities on the CPU.

    Args:
        swept: Log-probabilities of the lists' ids and, behind them, of the sampled ones.
        teacher: The lists.
        sampled_ids: (...) int64, contiguous, or None.
        step_ids: (...) int64, contiguous, -1 in no step.
        num_steps: S.
        spec: Divergence, beta and floor are read.
        tail: One of `TAILS`.

    Returns:
        The statistics.

    Raises:
        NativeUnavailableError: The library cannot run here.
    """
    library = loader.load("cpu")
    swept = LogProbStats(*(each.detach().contiguous() for each in swept))
    teacher = teacher._replace(
        log_probs=teacher.log_probs.contiguous(),
        ids=teacher.ids.contiguous(),
        tail=teacher.tail.contiguous(),
    )
    num_ids = teacher.ids.shape[-1]
    nothing = swept.student_entropy[:0]
    # Behind the lists' ids; read for the sums.
    sampled = nothing if sampled_ids is None else swept.log_probs[..., num_ids].contiguous()
    stats = ListStats(
        token_kl=torch.empty_like(swept.student_entropy),
        slopes=torch.empty(teacher.ids.shape, dtype=torch.float64),
        teacher_log_probs=torch.empty_like(sampled),
        step_sums=torch.empty((num_steps, _NUM_STEP_COLUMNS), dtype=torch.float64),
    )
    outputs = TokenStats(
        token_kl=stats.token_kl,
        token_reference_kl=nothing,
        student_log_probs=sampled,
        teacher_log_probs=stats.teacher_log_probs,
        student_entropy=swept.student_entropy,
        row_state=nothing,
        step_sums=stats.step_sums,
    )
    library.compare_lists(
        problem=library.ListProblem(
            num_tokens=step_ids.numel(),
            num_ids=num_ids,
            vocab_size=teacher.vocab_size,
            step_ids=step_ids.data_ptr(),
            teacher=_addresses(library, teacher),
            log_probs=swept.log_probs.data_ptr(),
            stride=swept.log_probs.shape[-1],
            sampled_ids=0 if sampled_ids is None else sampled_ids.data_ptr(),
            tail=TAILS.index(tail),
            divergence=DIVERGENCES[spec.divergence],
            beta=spec.beta,
            min_log_prob=-math.inf if spec.min_log_prob is None else spec.min_log_prob,
            unit=torch.finfo(swept.log_probs.dtype).eps,
        ),
        outputs=library.Outputs(**addresses(outputs), num_steps=num_steps),
        slopes=stats.slopes.data_ptr(),
        num_threads=torch.get_num_threads(),
    )
    return stats


def _addresses(library: Any, teacher: TeacherList) -> Any:
    """Where the lists are; the caller keeps them alive."""
    ids, log_probs, tail = teacher.ids.data_ptr(), teacher.log_probs.data_ptr(), teacher.tail.data_ptr()
    return library.ReadLists(ids=ids, log_probs=log_probs, tail=tail)
