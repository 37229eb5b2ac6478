"""Examines this machine: versions, device, kernels and sandbox."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version

import torch

import sod_kernels
from sod.doctor.findings import Findings, Level
from sod.sandbox import LocalSandbox
from sod.types import ToolOutcome

PACKAGES = ("torch", "triton", "transformers", "sod-kernels")
# Near-equal pairs are the hard case: a KL of about 1e-3 nats, as late in a distillation.
_ROWS, _COLUMNS, _NOISE = 4, 4096, 0.045
_KERNEL_BOUND = 5e-4
_CODE = "import math\nprint(math.comb(8, 3) * 3 / 4)"
_ANSWER = "42.0"


def examine_versions(findings: Findings) -> None:
    """Write down what is installed."""
    known = []
    for package in PACKAGES:
        try:
            known.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            known.append(f"{package} -")
    findings.add("machine", "versions", f"Python {platform.python_version()}, {', '.join(known)}")


def examine_device(findings: Findings) -> None:
    """Write down where models would live."""
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        findings.add("machine", "device", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
        return
    findings.add("machine", "device", f"CPU, {torch.get_num_threads()} threads; no CUDA device is visible")


def examine_kernels(findings: Findings, device: torch.device) -> None:
    """Run every backend that can run here on a near-equal pair, against float64.

    Args:
        findings: Written to.
        device: Where the run would compute.
    """
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(_ROWS, _COLUMNS, generator=generator, dtype=torch.float64)
    teacher = student + _NOISE * torch.randn(_ROWS, _COLUMNS, generator=generator, dtype=torch.float64)
    truth, truth_gradient = _loss_and_gradient(student, teacher, "reference")
    pair = student.float().to(device), teacher.float().to(device)
    chosen = sod_kernels.step_kl(*pair).backend
    for name, status in sod_kernels.backends().items():
        label = f"{name} (chosen)" if name == chosen else name
        reason = status.reason.get(device.type)
        if reason is not None:
            level = Level.WARNING if name == "native" and device.type == "cpu" else Level.NOTE
            findings.add("kernels", label, f"cannot run on {device.type}: {reason}", level)
            continue
        loss, gradient = _loss_and_gradient(*pair, name)
        error = abs(float(loss) / float(truth) - 1)
        distance = gradient.cpu().double() - truth_gradient
        gradient_error = float(distance.norm() / truth_gradient.norm())
        is_right = error <= _KERNEL_BOUND and gradient_error <= _KERNEL_BOUND
        findings.add(
            "kernels",
            label,
            f"KL {float(truth):.2e} nats: relative error {error:.1e}, gradient {gradient_error:.1e} "
            f"(bound {_KERNEL_BOUND:.0e})",
            Level.OK if is_right else Level.FATAL,
        )


def examine_sandbox(findings: Findings, *, is_needed: bool) -> None:
    """Start the Python sandbox, whose own self-test looks for holes, and run a line in it.

    Args:
        findings: Written to.
        is_needed: Whether the run calls it; without it a sandbox that cannot be had is only noted.
    """
    absent = Findings()
    with absent.examining("sandbox", "self-test"), LocalSandbox(num_workers=1) as sandbox:
        started = time.perf_counter()
        result = sandbox.run(_CODE, timeout_s=30.0)
        spent_ms = 1e3 * (time.perf_counter() - started)
        is_right = result.outcome is ToolOutcome.OK and result.stdout.strip() == _ANSWER
        text = f"isolated; a call took {spent_ms:.0f} ms"
        if not is_right:
            text = f"{_CODE!r} gave {result.outcome} {result.stdout!r} {result.stderr!r}, wanted {_ANSWER}"
        findings.add("sandbox", "self-test", text, Level.OK if is_right else Level.FATAL)
    for finding in absent:
        text = finding.text if is_needed else f"{finding.text} (this matters for the Python tool only)"
        findings.add("sandbox", "self-test", text, Level.FATAL if is_needed else Level.NOTE)


def _loss_and_gradient(
    student: torch.Tensor, teacher: torch.Tensor, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = student.clone().requires_grad_()
    loss = sod_kernels.step_kl(leaf, teacher, backend=backend).loss
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
