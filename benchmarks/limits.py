"""The least work an op must do, and how long that takes at the rates measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.shapes import Case

_INDEX_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """Least traffic and arithmetic of one pass.

    Attributes:
        read_bytes: Bytes that must be read in phases that write nothing of size V.
        mixed_bytes: Bytes that must be read and written in phases that do both.
        flops: Arithmetic operations; an exponential or a logarithm counts as one.
        matmul_flops: Those of them that are in matrix products.
    """

    read_bytes: int
    mixed_bytes: int
    flops: int
    matmul_flops: int

    @property
    def bytes(self) -> int:
        """All traffic."""
        return self.read_bytes + self.mixed_bytes


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """What this machine's memory gave plain reads and copies in this run, bytes per second."""

    read: float
    copy: float


def step_kl_work(case: Case, *, has_backward: bool) -> Work:
    """Count `step_kl` from logits.

    Forward: each of the two logits of an entry is read once, 2 V b bytes per token with b bytes per logit.
    Backward: the upstream gradient exists only after the forward, and the logits no longer are in a cache by
    then, so both are read again and the gradient is written: 3 V b more. A single sweep, which is given it
    before, needs the latter alone; it is held to the same limit, which it may beat.

    Arithmetic per entry, forward: for each side a maximum, a subtraction, an exponential and an addition (8);
    the difference of the two and its multiply-add into the expectation (3). Backward: p = exp(z - lse) is 2,
    the difference 1, minus its mean 1, times p 1, times the upstream gradient 1.
    """
    entries = case.rows * case.pair.vocab
    return Work(
        read_bytes=2 * case.logits_bytes,
        mixed_bytes=3 * case.logits_bytes if has_backward else 0,
        flops=(17 if has_backward else 11) * entries,
        matmul_flops=0,
    )


def topk_step_kl_work(case: Case, *, has_backward: bool) -> Work:
    """Count `topk_step_kl`: the student's logits and the teacher's K log-probabilities and ids.

    Forward: V b bytes for the student, K (4 + 8) for the teacher's list. Backward: the student is read again
    and the gradient written, 2 V b; the list is small and counted once.

    Arithmetic per entry, forward: maximum, subtraction, exponential, addition (4). Backward: p is 2, times
    the row's coefficient 1. The K listed entries are not counted.
    """
    entries = case.rows * case.pair.vocab
    return Work(
        read_bytes=case.logits_bytes + case.rows * case.top_k * (4 + _INDEX_BYTES),
        mixed_bytes=2 * case.logits_bytes if has_backward else 0,
        flops=(7 if has_backward else 4) * entries,
        matmul_flops=0,
    )


def linear_step_kl_work(case: Case, *, has_backward: bool) -> Work:
    """Count `linear_step_kl` from hidden states, nothing recomputed.

    Products, at two operations per multiply-add: the student's logits 2 V d_s per token and the teacher's
    2 V d_t; backward the gradient of the hidden states 2 V d_s and that of the head 2 V d_s. Together
    2 V (3 d_s + d_t) per token. The logits' own arithmetic is that of `step_kl`.

    Traffic: hidden states and heads read once, gradients written once. The logits need not touch memory.
    """
    pair, rows = case.pair, case.rows
    widths = pair.student_width + pair.teacher_width
    inputs = (rows + pair.vocab) * widths * case.itemsize
    gradients = (rows + pair.vocab) * pair.student_width * case.itemsize
    products = 2 * rows * pair.vocab * (widths + (2 * pair.student_width if has_backward else 0))
    entrywise = step_kl_work(case, has_backward=has_backward).flops
    return Work(
        read_bytes=0 if has_backward else inputs,
        mixed_bytes=inputs + gradients if has_backward else 0,
        flops=products + entrywise,
        matmul_flops=products,
    )


_WORK = {"step_kl": step_kl_work, "linear_step_kl": linear_step_kl_work, "topk_step_kl": topk_step_kl_work}


def work(case: Case, *, has_backward: bool) -> Work:
    """Count the least work of a case."""
    return _WORK[case.op](case, has_backward=has_backward)


def memory_limit_s(needed: Work, bandwidth: Bandwidth) -> float:
    """Seconds of the least traffic: pure reads at the read rate, the rest at the copy rate."""
    return needed.read_bytes / bandwidth.read + needed.mixed_bytes / bandwidth.copy


def limit_s(needed: Work, bandwidth: Bandwidth, matmul_s: float) -> float:
    """Seconds that the op cannot beat at the rates measured.

    Args:
        needed: The least work.
        bandwidth: Measured in this run.
        matmul_s: Measured seconds of the op's matrix products alone, at its shapes; 0 for an op without.

    Returns:
        The larger of the two limits, as products and traffic can overlap.
    """
    return max(memory_limit_s(needed, bandwidth), matmul_s)
