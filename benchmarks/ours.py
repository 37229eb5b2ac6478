"""The package's own functions, on every backend, without weights (as the peers) and with SOD's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import sod_kernels
from benchmarks.contestant import OURS, TORCH, Contestant, Loss, float_logits
from benchmarks.inputs import HiddenInputs, Inputs, LogitsInputs, TopKInputs
from benchmarks.outcomes import SkippedError
from sod_kernels import SodWeighting, backends

BACKENDS = ("native", "triton", "reference")
# Makes the logits of the whole batch first; what `linear_step_kl` saves is counted against it.
LOGITS_PATH = "logits, then step_kl native"
# Entries of the logits up to which the reference is timed.
_REFERENCE_ENTRIES = 1 << 22


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    if isinstance(inputs, LogitsInputs):
        return inputs.student, inputs.teacher
    if isinstance(inputs, TopKInputs):
        return inputs.student, inputs.teacher_log_probs, inputs.teacher_ids
    return inputs.student, inputs.student_head, inputs.teacher, inputs.teacher_head


def _prepare(op: str, backend: str, *, is_weighted: bool = False, **options: Any) -> Callable[[Any], Loss]:
    def prepare(inputs: LogitsInputs | TopKInputs | HiddenInputs) -> Loss:
        function = getattr(sod_kernels, op, None)
        if function is None:
            raise SkippedError(f"sod_kernels has no {op} in this version.")
        device = inputs.student.device.type
        reason = _unavailable(backend, device)
        if reason is not None:
            raise SkippedError(reason)
        entries = inputs.case.rows * inputs.case.pair.vocab
        if backend == "reference" and entries > _REFERENCE_ENTRIES:
            raise SkippedError("The reference computes in float64 and is timed on small cases only.")
        weighting = SodWeighting() if is_weighted else None
        values, rows = _tensors(inputs), inputs.rows
        # Chunks are planned on the host; ids on the device would be waited for in every call.
        step_ids = rows.step_ids.cpu() if op.startswith("linear") else rows.step_ids

        def loss() -> Tensor:
            output = function(
                *values,
                step_ids,
                num_steps=rows.num_steps,
                weighting=weighting,
                backend=backend,
                **options,
            )
            value: Tensor = output.loss
            return value

        return loss

    return prepare


def _unavailable(backend: str, device: str) -> str | None:
    status = backends()[backend]
    if not status.available[device]:
        return status.reason[device]
    if backend == "triton" and device == "cpu":
        return "Triton's interpreter runs on the CPU for tests; its time says nothing."
    return None


def _prepare_logits_path(inputs: HiddenInputs) -> Loss:
    reason = _unavailable("native", inputs.student.device.type)
    if reason is not None:
        raise SkippedError(reason)

    def loss() -> Tensor:
        # Names of their own would keep the logits alive through the backward pass.
        output = sod_kernels.step_kl(
            inputs.student @ inputs.student_head.t(),
            inputs.teacher @ inputs.teacher_head.t(),
            inputs.rows.step_ids,
            num_steps=inputs.rows.num_steps,
            backend="native",
        )
        return output.loss

    return loss


def our_contestants(op: str) -> list[Contestant]:
    """List our backends for an op; those that cannot run say why when they are prepared.

    Args:
        op: Name of a public function.

    Returns:
        For each backend one contestant without weights, which does the peers' work, and one with SOD's; for
        the op from logits also a single sweep, on the backend that visits each row once; for the op from
        hidden states also the way through logits that it replaces, which counts as torch's.
    """
    contestants = [
        Contestant(
            name=f"{op} {backend}" + (" + SOD weights" if is_weighted else ""),
            kind=OURS,
            prepare=_prepare(op, backend, is_weighted=is_weighted),
            is_weighted=is_weighted,
        )
        for backend in BACKENDS
        for is_weighted in (False, True)
    ]
    if op == "step_kl":
        name, prepare = "step_kl native, single sweep", _prepare(op, "native", single_sweep=True)
        contestants.append(Contestant(name=name, kind=OURS, prepare=prepare))
    if op == "linear_step_kl":
        needed = float_logits(3)
        contestants.append(
            Contestant(name=LOGITS_PATH, kind=TORCH, prepare=_prepare_logits_path, needed_bytes=needed)
        )
    return contestants
