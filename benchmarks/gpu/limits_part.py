"""What memory and matrix units of this card give to torch's own kernels: the limits of everything else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.device import Device, make_device
from benchmarks.gpu.job import Job
from benchmarks.shapes import LLAMA, PAIRS, QWEN, QWEN_4B, Pair
from sod_kernels.linear.plan import default_chunk_size

_ROUNDS = 9


def run(job: Job) -> None:
    """Measure traffic at three sizes and the four products of a chunk for every pair in use."""
    device = make_device(job.device)
    for mebibytes in (1,) if job.is_dry else (256, 1024, 4096):
        _traffic(job, device, mebibytes)
    tiny = Pair(name="tiny", vocab=515, student_width=16, teacher_width=24)
    for pair in (tiny,) if job.is_dry else (PAIRS[QWEN], PAIRS[QWEN_4B], PAIRS[LLAMA]):
        rows = 16 if job.is_dry else default_chunk_size(pair.vocab, 2, 4, job.device)
        _products(job, device, pair, rows)


def _traffic(job: Job, device: Device, mebibytes: int) -> None:
    """A copy counts the bytes read and those written, the others what they read or write."""
    size = mebibytes << 20
    names = [f"{name} {mebibytes} MiB" for name in ("copy", "read (sum)", "write (fill)")]
    if all(job.sheet.has({"item": name}) for name in names):
        return
    with job.row(f"allocate {2 * mebibytes} MiB"):
        source = torch.ones(size // 4, device=device.kind)
        target = torch.zeros_like(source)
        runs: dict[str, tuple[Callable[[], object], int]] = {
            names[0]: (lambda: target.copy_(source), 2 * size),
            names[1]: (source.sum, size),
            names[2]: (lambda: target.fill_(2.0), size),
        }
        for name, (call, moved) in runs.items():
            with job.row(name) as row:
                row["seconds"] = _best(device, call)
                row["gb_per_s"] = moved / row["seconds"] / 1e9


def _products(job: Job, device: Device, pair: Pair, rows: int) -> None:
    """The products of `linear_step_kl` in bfloat16 with float32 results, and one that is rounded."""
    wide = {} if job.is_dry else {"out_dtype": torch.float32}
    student, teacher = pair.student_width, pair.teacher_width
    shapes = {
        "teacher's logits": (rows, teacher, pair.vocab, wide),
        "student's logits": (rows, student, pair.vocab, wide),
        "gradient of hidden states": (rows, pair.vocab, student, wide),
        "gradient of the head": (pair.vocab, rows, student, wide),
        "logits rounded to bfloat16": (rows, student, pair.vocab, {}),
    }
    for name, (m, k, n, options) in shapes.items():
        item = f"{pair.name}: {name}, ({m} x {k}) (n = {n})"
        if job.sheet.has({"item": item}):
            continue
        with job.row(item) as row:
            left, right = _operands(m, k, n, device.kind)
            row["seconds"] = _best(device, lambda a=left, b=right, more=options: torch.mm(a, b, **more))
            row["tflop_per_s"] = 2 * m * k * n / row["seconds"] / 1e12


def _operands(m: int, k: int, n: int, kind: str) -> tuple[Tensor, Tensor]:
    """Random numbers, as zeros would be multiplied faster; the right one is a transposed head."""
    generator = torch.Generator(kind).manual_seed(0)
    left, right = (
        torch.empty(m, k, dtype=torch.bfloat16, device=kind),
        torch.empty(n, k, dtype=torch.bfloat16, device=kind),
    )
    return left.normal_(generator=generator), right.normal_(generator=generator).t()


def _best(device: Device, call: Callable[[], object]) -> float:
    # The first starts the library.
    device.seconds(call)
    return min(device.seconds(call) for _ in range(_ROUNDS))
