"""Finds the compiled libraries, or remembers why they are not there."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

MODULES = {"cpu": "sod_kernels.native._cpu", "cuda": "sod_kernels.native._cuda"}
# Written by setup.py: why a library was not built, by device type.
_RECORD = "build_record.json"


class NativeUnavailableError(RuntimeError):
    """The compiled library for a device cannot run here; the message says why."""


@functools.cache
def _import(device_type: str) -> Any | str:
    """Import a library, or return the reason why that is impossible."""
    name = MODULES[device_type]
    if importlib.util.find_spec(name) is None:
        return _why_not_built(device_type)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return f"The native {device_type} library is installed but does not load: {error}"


def _why_not_built(device_type: str) -> str:
    path = Path(__file__).parent / _RECORD
    recorded = json.loads(path.read_text()) if path.exists() else {}
    reason = recorded.get(device_type, "it is not part of this installation; build it with: pip install .")
    return f"The native {device_type} library was not built: {reason}"


@functools.cache
def unavailable_reason(device_type: str) -> str | None:
    """Tell why the library for a device type cannot run here.

    Args:
        device_type: "cpu" or "cuda".

    Returns:
        None if it can run, otherwise a sentence.
    """
    library = _import(device_type)
    if isinstance(library, str):
        return library
    if device_type == "cuda":
        reason: str = library.probe()
        return reason or None
    return None


def load(device_type: str) -> Any:
    """Return the compiled library for a device type.

    Args:
        device_type: "cpu" or "cuda".

    Returns:
        The extension module.

    Raises:
        NativeUnavailableError: It cannot run here.
    """
    reason = unavailable_reason(device_type)
    if reason is not None:
        raise NativeUnavailableError(reason)
    return _import(device_type)
