"""All that differs between a CPU and a CUDA device: clock, cache flush, memory high-water mark, rates."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import psutil
import torch
from torch import Tensor

from benchmarks.limits import Bandwidth
from sod_kernels.native import backend as native

Result = TypeVar("Result")


class Device(Protocol):
    """What a measurement asks of the machine."""

    kind: str

    def name(self) -> str:
        """Name the processor."""
        ...

    def seconds(self, run: Callable[[], object]) -> float:
        """Time one call; what it returns is freed after the clock has stopped."""
        ...

    def peak_extra_bytes(self, run: Callable[[], Result]) -> tuple[int | None, Result]:
        """Measure how far memory rises above what is held before `run`; None where the system cannot tell."""
        ...

    def available_bytes(self) -> int:
        """Memory that could be taken now."""
        ...


def make_device(kind: str) -> Device:
    """Make the device for "cpu" or "cuda"."""
    if kind == "cpu":
        return CpuDevice()
    if not torch.cuda.is_available():
        raise RuntimeError("benchmarks: --device cuda was asked for, but torch finds no CUDA device here.")
    return CudaDevice()


class CpuDevice:
    """Wall clock, and the resident high-water mark of this process."""

    kind = "cpu"

    def name(self) -> str:
        """Name the processor as the system does."""
        cpuinfo = Path("/proc/cpuinfo")
        text = cpuinfo.read_text() if cpuinfo.exists() else ""
        match = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
        return match.group(1) if match else platform.processor() or platform.machine()

    def seconds(self, run: Callable[[], object]) -> float:
        """Time one call by the wall clock."""
        start = time.perf_counter()
        result = run()
        elapsed = time.perf_counter() - start
        del result
        return elapsed

    def peak_extra_bytes(self, run: Callable[[], Result]) -> tuple[int | None, Result]:
        """Reset the high-water mark, run, read it; first everything freed goes back to the system.

        Pages that an allocator keeps from an earlier contestant would otherwise be used again unseen.
        """
        _return_freed_memory()
        try:
            # 5 sets the high-water mark back to what is resident now.
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            # Not Linux, or a container that does not allow it: the table shows a dash.
            return None, run()
        before = _status_bytes("VmRSS")
        result = run()
        return max(0, _status_bytes("VmHWM") - before), result

    def available_bytes(self) -> int:
        """Memory that the system could give without swapping."""
        _return_freed_memory()
        return int(psutil.virtual_memory().available)


class CudaDevice:
    """CUDA events around each call after the L2 cache was overwritten, and the allocator's own counters."""

    kind = "cuda"

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flush = torch.empty(2 * max(l2_bytes, 1 << 25), dtype=torch.int8, device="cuda")

    def name(self) -> str:
        """Name the GPU."""
        return torch.cuda.get_device_name()

    def seconds(self, run: Callable[[], object]) -> float:
        """Time one call on the device's clock, with a cold L2."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        result = run()
        end.record()
        end.synchronize()
        del result
        return float(start.elapsed_time(end)) / 1e3

    def peak_extra_bytes(self, run: Callable[[], Result]) -> tuple[int | None, Result]:
        """Read torch's allocator: bytes allocated at the peak beyond those allocated before."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, result

    def available_bytes(self) -> int:
        """Free memory of the GPU, once the allocator has returned what it caches."""
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]


def measure_bandwidth(device: Device, *, size_bytes: int | None = None, rounds: int = 9) -> Bandwidth:
    """Measure reading (a sum) and copying (bytes read plus written) with torch's kernels; the best round."""
    if size_bytes is None:
        # Large enough that starting a kernel is nothing and that no cache holds it.
        size_bytes = 1 << (30 if device.kind == "cuda" else 28)
    source = torch.ones(size_bytes // 4, device=device.kind)
    target = torch.zeros_like(source)
    read = min(device.seconds(source.sum) for _ in range(rounds))
    copy = min(device.seconds(lambda: target.copy_(source)) for _ in range(rounds))
    return Bandwidth(read=size_bytes / read, copy=2 * size_bytes / copy)


def head_products(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]
) -> list[Callable[[], object]]:
    """Bind the products that a hidden-state op cannot do without, at its own shapes.

    Args:
        student: Hidden states (N, d_s) and head (V, d_s).
        teacher: Hidden states (N, d_t) and head (V, d_t).

    Returns:
        Both projections, and the two products of the student's gradient.
    """
    (hidden, head), (teacher_hidden, teacher_head) = student, teacher
    # Outputs that exist already: what an allocation costs is no part of a limit.
    logits = torch.zeros(hidden.shape[0], head.shape[0], dtype=head.dtype, device=head.device)
    hidden_gradient, head_gradient = torch.zeros_like(hidden), torch.zeros_like(head)
    return [
        lambda: torch.mm(teacher_hidden, teacher_head.t(), out=logits),
        lambda: torch.mm(hidden, head.t(), out=logits),
        lambda: torch.mm(logits, head, out=hidden_gradient),
        lambda: torch.mm(logits.t(), hidden, out=head_gradient),
    ]


def measure_matmuls(
    device: Device, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, most_rows: int
) -> float:
    """Time the products of `head_products`.

    Args:
        device: Where the tensors are.
        student: As in `head_products`.
        teacher: Likewise.
        most_rows: Rows to run at a time; the time of more is scaled from it.

    Returns:
        Seconds over all N rows, each product at its best of the rounds.
    """
    rows = min(student[0].shape[0], most_rows)
    products = head_products(
        (student[0][:rows].detach(), student[1].detach()), (teacher[0][:rows], teacher[1])
    )
    rounds = 10 if device.kind == "cuda" else 2
    total = sum(min(device.seconds(product) for _ in range(rounds)) for product in products)
    return total * student[0].shape[0] / rows


def _return_freed_memory() -> None:
    gc.collect()
    if native.availability("cpu") is None:
        native.release_memory()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}.")
    return int(match.group(1)) * 1024
