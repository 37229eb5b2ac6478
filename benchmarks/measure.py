"""One case: check every contestant against float64, then measure memory, then time them in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestant import OURS, Contestant, Loss
from benchmarks.device import Device, measure_matmuls
from benchmarks.inputs import HiddenInputs, Inputs, make_inputs
from benchmarks.limits import Bandwidth, Work, limit_s, work
from benchmarks.outcomes import FAILED, OK, SKIPPED, WRONG, SkippedError
from benchmarks.record import Row, make_row, measured
from benchmarks.shapes import PASSES, Case
from benchmarks.timing import Timing, time_in_turns
from benchmarks.truth import Errors, TruthOf

# What a result may be off by before it is called wrong and not timed: loss, gradient. A 16-bit gradient has
# 8 or 11 bits. Peers are given room, and their errors are in the table.
_OURS = {"float32": (1e-4, 1e-4), "bfloat16": (1e-3, 1e-2), "float16": (1e-3, 1e-2)}
_OTHERS = (0.05, 0.5)
_MATMUL_ROWS = {"cpu": 512, "cuda": 4096}

Result = tuple[Tensor, tuple[Tensor, ...] | None]


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contestant that gave a right result, and what was seen of it before timing."""

    contestant: Contestant
    run: Callable[[], Result]
    errors: Errors
    peak_extra_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Rows of one case, and the matrix product rate measured for it.

    Attributes:
        rows: One per contestant and pass.
        matmul_flops_per_s: At the case's shapes; None for an op without products.
    """

    rows: list[Row]
    matmul_flops_per_s: float | None


def measure_case(
    case: Case,
    contestants: list[Contestant],
    device: Device,
    bandwidth: Bandwidth,
    *,
    budget_s: float,
    say: Callable[[str], None] = print,
) -> CaseResult:
    """Measure all contestants on one set of tensors.

    Args:
        case: What to measure.
        contestants: Of the case's op.
        device: Where.
        bandwidth: Of this run.
        budget_s: Seconds of timing per pass.
        say: Takes lines of progress.

    Returns:
        A row for every contestant and pass, also for those that did not run.
    """
    torch._dynamo.reset()
    inputs = make_inputs(case, device.kind)
    truth = TruthOf(inputs)
    matmul_s = _matmul_s(inputs, device)
    rows: list[Row] = []
    # Backward first: it checks the most.
    for sweeps in reversed(PASSES[case.op]):
        has_backward = sweeps == "forward+backward"
        say(f"{case}, {sweeps}")
        entrants: list[Entrant] = []
        for contestant in contestants:
            outcome = enter(contestant, inputs, truth, device, has_backward=has_backward)
            entrants += [outcome] if isinstance(outcome, Entrant) else []
            if not isinstance(outcome, Entrant):
                rows.append(make_row(case, sweeps, contestant, **outcome))
            say(f"  {contestant.name}: {_describe(outcome)}")
        calls = {each.contestant.name: each.run for each in entrants}
        timings = time_in_turns(calls, device, budget_s=budget_s)
        # Before and after, as a limit that is measured in a busy moment would be no limit.
        matmul_s = min(matmul_s, _matmul_s(inputs, device))
        needed = work(case, has_backward=has_backward)
        limit = limit_s(needed, bandwidth, matmul_s)
        rows += _make_rows(case, sweeps, entrants, timings, needed, limit)
    products = work(case, has_backward=True).matmul_flops
    return CaseResult(rows=rows, matmul_flops_per_s=products / matmul_s if products else None)


def _matmul_s(inputs: Inputs, device: Device) -> float:
    if not isinstance(inputs, HiddenInputs):
        return 0.0
    tensors = [inputs.student, inputs.student_head, inputs.teacher, inputs.teacher_head]
    most_rows = _MATMUL_ROWS[device.kind]
    seconds = measure_matmuls(device, (tensors[0], tensors[1]), (tensors[2], tensors[3]), most_rows=most_rows)
    if device.kind == "cpu" and inputs.case.dtype != "float32":
        # Processors without 16-bit arithmetic multiply faster in float32, and anybody may do so.
        wide = [tensor.detach().float() for tensor in tensors]
        in_float32 = measure_matmuls(device, (wide[0], wide[1]), (wide[2], wide[3]), most_rows=most_rows)
        return min(seconds, in_float32)
    return seconds


def enter(
    contestant: Contestant, inputs: Inputs, truth: TruthOf, device: Device, *, has_backward: bool
) -> Entrant | dict[str, Any]:
    """Bind, run once, check.

    Args:
        contestant: Of the case's op.
        inputs: Of the case.
        truth: Of the same inputs.
        device: Where they are.
        has_backward: Whether gradients are computed and checked too.

    Returns:
        What can be timed, or the columns of a row without timing if that does not work.
    """
    try:
        _leave_room(contestant.needed_bytes(inputs.case), device)
        run = bind(contestant.prepare(inputs), inputs.leaves, has_backward=has_backward)
        if contestant.is_compiled:
            run()
        peak, (loss, gradients) = device.peak_extra_bytes(run)
        errors = truth.errors(loss, gradients, contestant.divergence, is_weighted=contestant.is_weighted)
    except SkippedError as reason:
        return {"status": SKIPPED, "reason": str(reason)}
    except torch.OutOfMemoryError as error:
        return {"status": SKIPPED, "reason": f"Out of memory: {next(iter(str(error).splitlines()), '')}"}
    except Exception as error:
        # Whatever a contestant breaks on is its own row's matter.
        first = str(error).strip().splitlines()[:1]
        return {"status": FAILED, "reason": f"{type(error).__name__}: {''.join(first)}"}
    most_loss, most_gradient = _OURS[inputs.case.dtype] if contestant.kind == OURS else _OTHERS
    if errors.loss > most_loss or (errors.gradient is not None and errors.gradient > most_gradient):
        return {
            "status": WRONG,
            "reason": f"Off by more than {most_loss:.0e} (loss) or {most_gradient:.0e} (gradient).",
            "loss_error": errors.loss,
            "gradient_error": errors.gradient,
        }
    return Entrant(contestant=contestant, run=run, errors=errors, peak_extra_bytes=peak)


def _leave_room(needed: int, device: Device) -> None:
    """Refuse what would drive the system out of memory; asking for the free memory is not free itself."""
    free = device.available_bytes() if needed > 0 else 0
    if needed > free:
        raise SkippedError(f"Needs about {needed / 2**30:.1f} GiB where {free / 2**30:.1f} are free.")


def bind(loss: Loss, leaves: tuple[Tensor, ...], *, has_backward: bool) -> Callable[[], Result]:
    """Make the call that is measured: the loss, with gradients of the leaves if they are wanted."""

    def with_backward() -> Result:
        value = loss()
        return value, torch.autograd.grad(value, leaves)

    def forward() -> Result:
        with torch.no_grad():
            return loss(), None

    return with_backward if has_backward else forward


def _make_rows(
    case: Case, sweeps: str, entrants: list[Entrant], timings: dict[str, Timing], needed: Work, limit: float
) -> list[Row]:
    return [
        make_row(
            case,
            sweeps,
            each.contestant,
            status=OK,
            peak_extra_bytes=each.peak_extra_bytes,
            **measured(timings[each.contestant.name], each.errors, needed, limit),
        )
        for each in entrants
    ]


def _describe(outcome: Entrant | dict[str, Any]) -> str:
    if not isinstance(outcome, Entrant):
        return f"{outcome['status']}: {outcome['reason']}"
    gradient = outcome.errors.gradient
    shown = "" if gradient is None else f", gradient by {gradient:.1e} of its norm"
    return f"loss off by {outcome.errors.loss:.1e}{shown}"
