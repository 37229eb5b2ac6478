"""Steps as segments of a batch: masks to step ids, sums and means per step.

A segment sum here never depends on the order in which threads finish, so equal inputs give equal bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels._checks import values as _checks

_CHUNK_TOKENS = 1 << 18
_LANES = 16


def steps_from_mask(response_mask: Tensor) -> Tensor:
    """Number the steps of a batch: every run of ones in the last dimension is one step.

    Rows never share a step; ids count over the whole batch in row-major order. Two generations with nothing
    between them form one run and hence one step; give explicit step ids where that matters.

    Args:
        response_mask: (..., T) of 0 and 1, or bool; 1 where the student wrote the token.

    Returns:
        Step ids of the mask's shape, int64: 0 .. S-1 inside runs, -1 outside.

    Raises:
        TypeError: If the mask is not a tensor of bool, integer or floating dtype.
        ValueError: If it has no dimension, or (checked on the CPU only) holds anything but 0 and 1.
    """
    _checks.check_mask("steps_from_mask", response_mask)
    inside = response_mask.bool()
    # The token before a row's first one counts as outside, so that a run never crosses into the next row.
    before = torch.zeros_like(inside)
    before[..., 1:] = inside[..., :-1]
    is_start = inside & ~before
    ids = is_start.flatten().cumsum(0).view(inside.shape) - 1
    return torch.where(inside, ids, -1)


def step_tokens(step_ids: Tensor, num_steps: int) -> Tensor:
    """Count the tokens of each step.

    Args:
        step_ids: Integer ids of any shape in [0, num_steps), -1 = in no step.
        num_steps: Number of steps S.

    Returns:
        (S,) int64.
    """
    # Tokens in no step are collected past the last step.
    bins = torch.where(step_ids < 0, num_steps, step_ids).flatten()
    counts = torch.zeros(num_steps + 1, dtype=torch.int64, device=step_ids.device)
    return counts.scatter_add(0, bins, torch.ones_like(bins))[:-1]


def step_means(values: Tensor, step_ids: Tensor, num_steps: int) -> Tensor:
    """Average values over the tokens of each step, accumulated in float64.

    Args:
        values: One value per token, any shape, floating; values at tokens in no step are not read.
        step_ids: Integer ids of the same shape in [0, num_steps), -1 = in no step.
        num_steps: Number of steps S.

    Returns:
        (S,) float64 means, 0 for a step without tokens. Detached; bitwise repeatable.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes differ or (checked on the CPU only) an id is out of range.
    """
    _checks.check_step_means(values, step_ids, num_steps)
    sums, counts = _sums_and_counts(values.detach().flatten()[None], step_ids.flatten(), num_steps)
    return torch.where(counts > 0, sums[0] / counts.clamp(min=1.0), 0.0)


def segment_sums(values: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """Sum values per segment in float64, in an order that does not depend on threads.

    Args:
        values: (N,) floating; values at id -1 are not read.
        segment_ids: (N,) integer in [-1, num_segments).
        num_segments: Number of segments.

    Returns:
        (num_segments,) float64.
    """
    return _sums_and_counts(values[None], segment_ids, num_segments)[0][0]


def step_sums(
    token_kl: Tensor,
    student_entropy: Tensor,
    log_probs: tuple[Tensor, Tensor] | None,
    step_ids: Tensor,
    num_steps: int,
) -> Tensor:
    """Sum the reported token values of each step, as `TokenStats.step_sums` has them.

    Args:
        token_kl: Any leading shape, like every tensor here.
        student_entropy: Entropy of the student.
        log_probs: Of the sampled ids, the student's and the teacher's; None without.
        step_ids: -1 in no step.
        num_steps: Number of steps S.

    Returns:
        (S, 5) float64, in an order that does not depend on threads.
    """
    columns = [token_kl, student_entropy]
    if log_probs is not None:
        student, teacher = log_probs
        columns += [(student - teacher).abs(), -student]
    values = torch.stack([column.detach().flatten() for column in columns])
    sums, counts = _sums_and_counts(values, step_ids.flatten(), num_steps)
    kl, entropy, *sampled = sums
    gap, nll = sampled or (torch.zeros_like(kl), torch.zeros_like(kl))
    return torch.stack([counts, kl, gap, nll, entropy], -1)


def _sums_and_counts(values: Tensor, ids: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """Sums (C, S) of the columns of values, (C, N), and counts (S,); both float64."""
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        sums = _scatter_sums(values, ids, num_segments)
    else:
        sums = _sorted_sums(values, ids, num_segments)
    return sums[:-1], sums[-1]


def _scatter_sums(values: Tensor, ids: Tensor, num_segments: int) -> Tensor:
    """(C + 1, S) sums and counts on the CPU, in chunks that stay in cache.

    A complex scatter adds two columns in one walk, a column of ones among them. A fixed number of lanes, each
    with a row of its own, lets threads share a chunk without changing the order of any sum.
    """
    num_columns, num_tokens = values.shape
    num_pairs = num_columns // 2 + 1
    has_lanes = num_tokens >= 4 * _LANES * (num_segments + 1)
    # Bin 0 collects the tokens in no step.
    sums = torch.zeros(num_pairs, _LANES if has_lanes else 1, num_segments + 1, dtype=torch.complex128)
    pairs = torch.ones(num_pairs, min(_CHUNK_TOKENS, num_tokens), 2, dtype=torch.float64)
    for begin in range(0, num_tokens, _CHUNK_TOKENS):
        bins = ids[begin : begin + _CHUNK_TOKENS].long() + 1
        num_bins = bins.numel()
        for column in range(num_columns):
            pairs[column // 2, :num_bins, column % 2] = values[column, begin : begin + _CHUNK_TOKENS]
        lanes = _LANES if has_lanes and num_bins % _LANES == 0 else 1
        chunk = torch.view_as_complex(pairs[:, :num_bins]).view(num_pairs, lanes, -1)
        sums[:, :lanes].scatter_add_(2, bins.view(1, lanes, -1).expand(num_pairs, -1, -1), chunk)
    by_pair = torch.view_as_real(sums.sum(1))[:, 1:]
    return by_pair.transpose(1, 2).flatten(0, 1)[: num_columns + 1]


def _sorted_sums(values: Tensor, ids: Tensor, num_segments: int) -> Tensor:
    """(C + 1, S) sums and counts by a stable sort: no atomics, no wait for the device, fit for capture."""
    ranked, order = torch.sort(ids, stable=True)
    borders = torch.searchsorted(ranked, torch.arange(num_segments + 1, device=ids.device, dtype=ids.dtype))
    sums = torch.segment_reduce(
        values.T.double()[order], "sum", offsets=borders, axis=0, unsafe=True, initial=0.0
    )
    return torch.cat([sums.T, borders.diff().double()[None]])


def dense_ids(labels: Tensor) -> Tensor:
    """Renumber arbitrary integer labels 0, 1, ... in ascending order, without waiting for the device.

    Args:
        labels: (S,) integer, any values in any order.

    Returns:
        (S,) int64 in [0, S): equal exactly where the labels are.
    """
    ranked, order = torch.sort(labels, stable=True)
    is_new = torch.zeros_like(ranked, dtype=torch.bool)
    is_new[1:] = ranked[1:] != ranked[:-1]
    number = is_new.cumsum(0)
    return torch.empty_like(number).scatter_(0, order, number)
