"""Which backend runs, and why; never silently.

Backends are imported at first use, so that a missing one is a recorded reason and not a crash.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any, cast

import torch

from sod_kernels.types import Backend

_NAMES = ("reference", "native", "triton")
_DEVICE_TYPES = ("cpu", "cuda")
_PREFERENCE = {"cpu": ("native", "reference"), "cuda": ("triton", "reference")}


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class BackendStatus:
    """Where a backend can run.

    Attributes:
        available: For each device type ("cpu", "cuda") whether the backend can run there.
        reason: For each device type where it cannot, why not.
    """

    available: dict[str, bool]
    reason: dict[str, str]


@functools.cache
def _import_error(name: str) -> str | None:
    try:
        importlib.import_module(f"sod_kernels.{name}.backend")
    except ImportError as error:
        return f"sod_kernels.{name}.backend cannot be imported ({error})."
    return None


def load(name: str) -> Backend:
    """Import a backend.

    Args:
        name: "reference", "native" or "triton".

    Returns:
        Its module.

    Raises:
        BackendUnavailableError: If it cannot be imported.
    """
    error = _import_error(name)
    if error is not None:
        raise BackendUnavailableError(f"Backend {name!r}: {error}")
    return cast(Backend, importlib.import_module(f"sod_kernels.{name}.backend"))


def unavailable_reason(name: str, device_type: str, dtype: torch.dtype | None = None) -> str | None:
    """Say why a backend cannot run on a kind of device for a dtype.

    Args:
        name: "reference", "native" or "triton".
        device_type: Such as "cpu" or "cuda".
        dtype: Dtype of the logits, or None to leave it out of account.

    Returns:
        None if it can run, else the reason as a sentence.
    """
    reason = _import_error(name)
    if reason is None:
        reason = load(name).availability(device_type)
    if reason is None and name == "native" and dtype == torch.float64:
        reason = "The native kernels compute in float32 and take no float64 logits."
    return reason


def backends() -> dict[str, BackendStatus]:
    """Tell which backends can run here, and why the others cannot.

    Returns:
        A status per backend name.
    """
    table = {}
    for name in _NAMES:
        reasons = {kind: unavailable_reason(name, kind) for kind in _DEVICE_TYPES}
        table[name] = BackendStatus(
            available={kind: reason is None for kind, reason in reasons.items()},
            reason={kind: reason for kind, reason in reasons.items() if reason is not None},
        )
    return table


def resolve(backend: str, device_type: str, dtype: torch.dtype, *, function: str = "step_kl") -> str:
    """Choose the backend that runs.

    "auto" takes native on the CPU (reference for float64) and triton on CUDA devices, and the reference where
    those cannot run; `StepKLOutput.backend` shows the choice.

    Args:
        backend: "auto" or a name.
        device_type: Where the logits are.
        dtype: Dtype of the logits.
        function: Name for the message.

    Returns:
        "reference", "native" or "triton".

    Raises:
        BackendUnavailableError: If the named backend, or with "auto" every one, cannot run.
    """
    wanted = _PREFERENCE.get(device_type, ("reference",)) if backend == "auto" else (backend,)
    reasons = []
    for name in wanted:
        reason = unavailable_reason(name, device_type, dtype)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    others = [name for name in _NAMES if unavailable_reason(name, device_type, dtype) is None]
    advice = (
        f"Use backend='auto' or one of: {', '.join(others)}." if others else "Move the logits to the CPU."
    )
    raise BackendUnavailableError(
        f"{function}: backend={backend!r} cannot run on {device_type!r} for {dtype}. {' '.join(reasons)} "
        f"{advice}"
    )


# Compiled code takes the answer as a constant: it depends on device type and dtype, which guard the graph.
# This is all that torch.compiler.assume_constant_result does, but that imports the whole compiler first.
cast(Any, resolve)._dynamo_marked_constant = True
