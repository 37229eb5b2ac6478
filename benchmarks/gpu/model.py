"""A model of the wall clock on an H200, so that a plan that cannot fit shows before device time is spent.

Rates are those that docs/gpu.md expects of the card, start-up and compile times those of other machines: a
model, not a measurement. The files of a run say how long each part really took.
"""

from __future__ import annotations

from benchmarks.gpu.bench_cases import EVERYBODY, Planned, planned
from benchmarks.limits import Bandwidth, limit_s, work
from benchmarks.shapes import PASSES

BANDWIDTH = Bandwidth(read=4.3e12, copy=4.3e12)
MATMUL_FLOPS_PER_S = 7.9e14
START_S = 12.0
"""Starting Python, torch and a CUDA context, and importing the peers."""

# One contestant at twice the limit is good, eager at twenty times it is usual.
_TIMES_LIMIT = 12.0
_COMPILE_S = 9.0
_TRUTH_S = 1.5
_LEAST_ROUNDS = 3
# nvcc for one architecture; about 1,000 tests of two seconds on twelve workers; a dozen of launches under the
# sanitizer at a hundred times their time; three replayed kernels of four functions; rounds of the training.
_FIXED_S = {"build": 50.0, "correctness": 180.0, "limits": 25.0, "sanitize": 200.0, "counters": 120.0}
_E2E_S = 540.0


def expected_seconds(part: str) -> float:
    """Say how long a part is expected to take.

    Args:
        part: Name.

    Returns:
        Seconds on an H200. The part "bench" begins no case that it has no time for; only those with a target
        count.
    """
    if part == "bench":
        return START_S + sum(case_seconds(each) for each in planned(is_dry=False) if each.is_target)
    return _E2E_S if part == "e2e" else _FIXED_S[part]


def case_seconds(each: Planned) -> float:
    """Say how long a case is expected to take.

    Args:
        each: Case and contestants.

    Returns:
        Seconds: truth, compiling where torch.compile takes part, and rounds of everybody.
    """
    num_contestants = 11 if each.contestants == EVERYBODY else 5
    # torch.compile twice, and Liger's chunked loss.
    num_compiled = 2 + (each.case.op == "linear_step_kl") if each.contestants == EVERYBODY else 0
    total = _TRUTH_S
    for sweeps in PASSES[each.case.op]:
        needed = work(each.case, has_backward=sweeps == "forward+backward")
        limit = limit_s(needed, BANDWIDTH, needed.matmul_flops / MATMUL_FLOPS_PER_S)
        total += num_compiled * _COMPILE_S + _LEAST_ROUNDS * num_contestants * _TIMES_LIMIT * limit + 0.5
    return total
