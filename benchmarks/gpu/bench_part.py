"""Ours beside the peers at the shapes of the targets, as `benchmarks.run` measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.contestant import Contestant
from benchmarks.device import Device, make_device, measure_bandwidth
from benchmarks.gpu.bench_cases import Planned, planned
from benchmarks.gpu.job import Job, say, why_not
from benchmarks.gpu.model import case_seconds
from benchmarks.limits import Bandwidth
from benchmarks.measure import measure_case
from benchmarks.outcomes import SKIPPED
from benchmarks.peers import add_to_path
from benchmarks.record import Row, make_row
from benchmarks.run import contestants_of
from benchmarks.shapes import PASSES
from benchmarks.table import render_cases, render_verdicts

_BUDGET_S = 0.5


def run(job: Job) -> None:
    """Measure case after case while there is time."""
    add_to_path(job.peers)
    device = make_device(job.device)
    bandwidth = measure_bandwidth(device, size_bytes=1 << 20 if job.is_dry else None)
    job.sheet.content |= {"bandwidth": asdict(bandwidth), "matmul_flops_per_s": None}
    for each in planned(is_dry=job.is_dry):
        contestants = contestants_of(each.case.op, each.contestants)
        waiting = [one for one in contestants if not _is_done(job, each, one)]
        if not waiting:
            continue
        # Everybody is measured again beside whoever is new, as times are compared within a case only.
        if job.seconds_left() < _seconds_needed(each, is_dry=job.is_dry):
            job.sheet.add(_skipped(each, waiting, f"Not begun: {job.seconds_left():.0f} s were left."))
            continue
        _measure(job, each, contestants, device, bandwidth)
    say(render_verdicts(_rows(job)))


def _measure(
    job: Job, each: Planned, contestants: Sequence[Contestant], device: Device, bandwidth: Bandwidth
) -> None:
    try:
        budget_s = 0.01 if job.is_dry else _BUDGET_S
        result = measure_case(each.case, list(contestants), device, bandwidth, budget_s=budget_s, say=say)
    except Exception as error:
        # Too large for this card, or a product that fails: the next case may do.
        job.sheet.add(_skipped(each, contestants, why_not(error)["reason"]))
        return
    finally:
        # Frees what the case took, before the next one asks what is left.
        device.available_bytes()
    rates = [job.sheet.content["matmul_flops_per_s"], result.matmul_flops_per_s]
    job.sheet.content["matmul_flops_per_s"] = max((rate for rate in rates if rate), default=None)
    job.sheet.replace(asdict(row) for row in result.rows)
    say("\n" + render_cases(result.rows) + "\n")


def _seconds_needed(each: Planned, *, is_dry: bool) -> float:
    """What has to be left to begin a case."""
    return 0.0 if is_dry else case_seconds(each)


def _is_done(job: Job, each: Planned, contestant: Contestant) -> bool:
    rows = [make_row(each.case, sweeps, contestant, status=SKIPPED) for sweeps in PASSES[each.case.op]]
    return all(job.sheet.has(asdict(row)) for row in rows)


def _skipped(each: Planned, contestants: Sequence[Contestant], reason: str) -> list[dict[str, object]]:
    return [
        asdict(make_row(each.case, sweeps, contestant, status=SKIPPED, reason=reason))
        for contestant in contestants
        for sweeps in PASSES[each.case.op]
    ]


def _rows(job: Job) -> list[Row]:
    return [Row(**row) for row in job.sheet.rows]
