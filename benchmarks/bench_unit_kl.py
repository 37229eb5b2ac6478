"""`unit_kl` over two large vocabularies, against the plain dense formulation, in one run on the CPU.

    python -m benchmarks.bench_unit_kl [--output results.json]

Plain is what a paper's code writes down: one row of scores per unit and side in a list, padded with -1e9 to a
column for each span of the batch, stacked, log-softmax on both sides, the sum, and autograd backward. Both
score spans as the paper does, so the normaliser of each span's rows is paid by both. Value and gradient of
both must agree with each other before anything is timed.

Least traffic of our side, per unit of C shared columns and b bytes: 2 C b forward; 3 C b and one written row
of the student's vocabulary backward.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import make_device
from benchmarks.timing import Timing, time_in_turns
from sod_kernels import Units, VocabMap, unit_kl

STUDENT_SIZE, TEACHER_SIZE, NUM_SHARED = 128_256, 151_936, 100_000
# One unit in 16 has a span of two tokens on one side or on both.
SPAN_LENGTHS = ((2, 1), (1, 2), (2, 2), (3, 2))
AGREEMENT = {"loss": 1e-5, "gradient": 1e-4}
FILLER = -1e9


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Logits, labels, units and map of one batch."""

    student: Tensor
    teacher: Tensor
    student_ids: Tensor
    teacher_ids: Tensor
    units: Units
    vocab_map: VocabMap


def make_batch(num_units: int, sizes: tuple[int, int], num_shared: int) -> Batch:
    """Draw a batch: most units are one token on each side that is a pair of the map."""
    generator = torch.Generator().manual_seed(0)
    lengths = [SPAN_LENGTHS[u // 16 % 4] if u % 16 == 15 else (1, 1) for u in range(num_units)]
    ends = torch.tensor(lengths).cumsum(0)
    # (U, [start, end], [student, teacher])
    spans = torch.stack([ends - torch.tensor(lengths), ends], 1)
    columns = [torch.randperm(size, generator=generator)[:num_shared] for size in sizes]
    columns[0], order = columns[0].sort()
    columns[1] = columns[1][order]
    rows = ends[-1].tolist()
    picked = torch.randint(num_shared, (num_units,), generator=generator)
    ids = [
        torch.randint(size, (count,), generator=generator) for size, count in zip(sizes, rows, strict=True)
    ]
    for side in (0, 1):
        ids[side][spans[:, 0, side]] = columns[side][picked]
    logits = [
        3 * torch.randn(count, size, generator=generator) for count, size in zip(rows, sizes, strict=True)
    ]
    return Batch(
        student=logits[0].requires_grad_(),
        teacher=logits[1],
        student_ids=ids[0],
        teacher_ids=ids[1],
        units=Units(spans[..., 0].contiguous(), spans[..., 1].contiguous()),
        vocab_map=VocabMap(*columns),
    )


def plain_loss(batch: Batch) -> Tensor:
    """A row of scores per unit in a list, filler where another unit's span is, and all of it in autograd."""
    spans = (batch.units.student_spans, batch.units.teacher_spans)
    has_span = (torch.stack(spans).diff(dim=-1) > 1).any(0).flatten().tolist()
    columns = (batch.vocab_map.student_columns, batch.vocab_map.teacher_columns)
    ids = (batch.student_ids, batch.teacher_ids)
    log_probs = []
    for logits, labels, span, column in zip((batch.student, batch.teacher), ids, spans, columns, strict=True):
        shared = logits.index_select(0, span[:, 0]).index_select(1, column).unbind()
        rows, seen = [], 0
        for unit, (start, end) in enumerate(span.tolist()):
            extra = torch.full((sum(has_span),), FILLER)
            if has_span[unit]:
                whole = logits[start:end]
                lse = whole.logsumexp(-1)
                own = whole.gather(-1, labels[start:end, None]).squeeze(-1)
                extra = extra.index_put((torch.tensor([seen]),), ((own - lse).mean() + lse[0])[None])
                seen += 1
            rows.append(torch.cat([shared[unit], extra]))
        log_probs.append(torch.stack(rows).log_softmax(-1))
    return (log_probs[0].exp() * (log_probs[0] - log_probs[1])).sum() / batch.student.shape[0]


def our_loss(batch: Batch) -> Tensor:
    """One call."""
    return unit_kl(
        batch.student,
        batch.teacher,
        batch.units,
        batch.vocab_map,
        student_ids=batch.student_ids,
        teacher_ids=batch.teacher_ids,
    ).loss


def with_gradient(loss: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss and the student's gradient."""
    value = loss(batch)
    return value.detach(), torch.autograd.grad(value, batch.student)[0]


def check(batch: Batch) -> dict[str, float]:
    """Raise unless both agree; by how much they differ."""
    ours, plain = (with_gradient(loss, batch) for loss in (our_loss, plain_loss))
    gap = {
        "loss": float((ours[0] - plain[0]).abs() / plain[0]),
        "gradient": float((ours[1] - plain[1]).norm() / plain[1].norm()),
    }
    for name, allowed in AGREEMENT.items():
        if not gap[name] <= allowed:
            raise SystemExit(f"{name}: both differ by {gap[name]:.3g}; nothing was timed.")
    return gap


def measure(batch: Batch, budget_s: float) -> list[dict[str, Any]]:
    """Memory, then times in turns, of both formulations with the gradient."""
    device = make_device("cpu")
    contestants = {"unit_kl": our_loss, "plain": plain_loss}
    calls = {name: lambda loss=loss: with_gradient(loss, batch) for name, loss in contestants.items()}
    peaks = {}
    for name, call in calls.items():
        # Once unmeasured: what is allocated for good on first use is no part of a call.
        call()
        peaks[name] = device.peak_extra_bytes(call)[0]
    timings = time_in_turns(calls, device, budget_s=budget_s)
    gradient = batch.student.numel() * batch.student.element_size()
    return [record(name, timings[name], peaks[name], gradient) for name in contestants]


def record(name: str, timing: Timing, peak: int | None, gradient_bytes: int) -> dict[str, Any]:
    """One row of the result."""
    return {
        "name": name,
        "median_s": timing.median_s,
        "p20_s": timing.p20_s,
        "p80_s": timing.p80_s,
        "peak_extra_bytes": peak,
        "beyond_gradient_bytes": None if peak is None else max(0, peak - gradient_bytes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=128, help="units in the batch")
    parser.add_argument("--shared", type=int, default=NUM_SHARED, help="columns that both have")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of timing")
    parser.add_argument("--output", type=Path, help="file for the record; it is printed either way")
    options = parser.parse_args()
    batch = make_batch(options.units, (STUDENT_SIZE, TEACHER_SIZE), options.shared)
    gap = check(batch)
    rows = measure(batch, options.budget)
    ours, plain = rows
    result = {
        "shape": [*batch.student.shape, *batch.teacher.shape, options.shared],
        "units": options.units,
        "agreement": gap,
        "device": make_device("cpu").name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "rows": rows,
        "times_faster_than_plain": plain["median_s"] / ours["median_s"],
        "memory_of_plain": _share(ours["beyond_gradient_bytes"], plain["beyond_gradient_bytes"]),
    }
    text = json.dumps(result, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


def _share(ours: int | None, plain: int | None) -> float | None:
    """What part of plain's memory beyond the gradient ours takes."""
    return None if ours is None or not plain else ours / plain


if __name__ == "__main__":
    main()
