"""`unit_kl` over two large vocabularies, against the plain dense formulation, in one run on the CPU.

    python -m benchmarks.bench_unit_kl [--output results.json] [--hidden 512 1024]

Plain is what a paper's code writes down: one row of scores per unit and side in a list, padded with -1e9 to a
column for each span of the batch, stacked, log-softmax on both sides, the sum, and autograd backward. Both
score spans as the paper does, so the normaliser of each span's rows is paid by both. Value and gradient of
both must agree with each other before anything is timed.

Least traffic of our side, per unit of C shared columns and b bytes: 2 C b forward; 3 C b and one written row
of the student's vocabulary backward.

With `--hidden`, the sizes of student and teacher, the same units come from hidden states and heads instead:
`linear_unit_kl` against `unit_kl` on logits that the heads have made, gradients of hidden states and head
with both. Least products of the former: U C (H + H of the teacher) forward and 2 U C H backward, and for the
rows of spans of several tokens, R and R of the teacher, 4 R V H and R V H of the teacher; of the latter all
rows with all columns, N V (3 H) + M V (H of the teacher).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import make_device
from benchmarks.timing import Timing, time_in_turns
from sod_kernels import Units, VocabMap, linear_unit_kl, unit_kl

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

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """What gets a gradient."""
        return (self.student,)

    def contestants(self) -> dict[str, Callable[[Any], Tensor]]:
        """Ours first."""
        return {"unit_kl": our_loss, "plain": plain_loss}


@dataclass(frozen=True, kw_only=True)
class HiddenBatch:
    """Hidden states and heads in the place of a batch's logits, which are not read."""

    batch: Batch
    student: tuple[Tensor, Tensor]
    teacher: tuple[Tensor, Tensor]

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """What gets a gradient."""
        return self.student

    def contestants(self) -> dict[str, Callable[[Any], Tensor]]:
        """Ours first."""
        return {"linear_unit_kl": linear_loss, "through_logits": through_logits_loss}


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


def make_hidden(batch: Batch, sizes: tuple[int, int]) -> HiddenBatch:
    """Draw hidden states and heads for the units of a batch."""
    generator = torch.Generator().manual_seed(1)
    heads = []
    for logits, size in zip((batch.student, batch.teacher), sizes, strict=True):
        rows, columns = logits.shape
        hidden = torch.randn(rows, size, generator=generator)
        heads.append((hidden, 3 * size**-0.5 * torch.randn(columns, size, generator=generator)))
    student, teacher = heads
    return HiddenBatch(
        batch=batch, student=(student[0].requires_grad_(), student[1].requires_grad_()), teacher=teacher
    )


def linear_loss(hidden: HiddenBatch) -> Tensor:
    """One call."""
    batch = hidden.batch
    labels = {"student_ids": batch.student_ids, "teacher_ids": batch.teacher_ids}
    return linear_unit_kl(*hidden.student, *hidden.teacher, batch.units, batch.vocab_map, **labels).loss


def through_logits_loss(hidden: HiddenBatch) -> Tensor:
    """The logits of the whole batch, as models make them, and one call."""
    student, teacher = (states @ weight.T for states, weight in (hidden.student, hidden.teacher))
    return our_loss(replace(hidden.batch, student=student, teacher=teacher))


def with_gradient(
    loss: Callable[[Any], Tensor], batch: Batch | HiddenBatch
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and the student's gradients."""
    value = loss(batch)
    return value.detach(), torch.autograd.grad(value, batch.learned)


def check(batch: Batch | HiddenBatch) -> dict[str, float]:
    """Raise unless both agree; by how much they differ."""
    ours, plain = (with_gradient(loss, batch) for loss in batch.contestants().values())
    pairs = zip(ours[1], plain[1], strict=True)
    gap = {
        "loss": float((ours[0] - plain[0]).abs() / plain[0]),
        "gradient": max(float((one - other).norm() / other.norm()) for one, other in pairs),
    }
    for name, allowed in AGREEMENT.items():
        if not gap[name] <= allowed:
            raise SystemExit(f"{name}: both differ by {gap[name]:.3g}; nothing was timed.")
    return gap


def measure(batch: Batch | HiddenBatch, budget_s: float) -> list[dict[str, Any]]:
    """Memory, then times in turns, of both formulations with the gradient."""
    device = make_device("cpu")
    contestants = batch.contestants()
    calls = {name: lambda loss=loss: with_gradient(loss, batch) for name, loss in contestants.items()}
    peaks = {}
    for name, call in calls.items():
        # Once unmeasured: what is allocated for good on first use is no part of a call.
        call()
        peaks[name] = device.peak_extra_bytes(call)[0]
    timings = time_in_turns(calls, device, budget_s=budget_s)
    gradient = sum(each.numel() * each.element_size() for each in batch.learned)
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
    parser.add_argument(
        "--hidden",
        type=int,
        nargs=2,
        metavar=("STUDENT", "TEACHER"),
        help="hidden sizes: compare from hidden states",
    )
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of timing")
    parser.add_argument("--output", type=Path, help="file for the record; it is printed either way")
    options = parser.parse_args()
    batch = make_batch(options.units, (STUDENT_SIZE, TEACHER_SIZE), options.shared)
    compared = make_hidden(batch, tuple(options.hidden)) if options.hidden else batch
    gap = check(compared)
    rows = measure(compared, options.budget)
    ours, plain = rows
    result = {
        "shape": [*batch.student.shape, *batch.teacher.shape, options.shared],
        "units": options.units,
        "hidden": options.hidden,
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
