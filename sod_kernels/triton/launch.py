"""How kernels are launched: whether they can be, with which configuration, and with which scalars."""

from __future__ import annotations

import functools
import importlib.util
import struct
from typing import Any

import torch
from torch import Tensor

from sod_kernels.triton.config import (
    INTERPRETER,
    LaunchConfig,
    SweepConfig,
    gpu_architecture,
    launch_config,
    num_splits,
    vector_width,
)

_OLDEST = (3, 6)


@functools.lru_cache(maxsize=1)
def _is_interpreted() -> bool:
    """Whether the kernels were decorated under TRITON_INTERPRET=1; decided once, when Triton is imported."""
    from triton import JITFunction

    from sod_kernels.triton.forward_kernels import first_sweep_kernel

    return not isinstance(first_sweep_kernel, JITFunction)


def availability(device_type: str) -> str | None:
    """Say whether this backend can run on a kind of device.

    Args:
        device_type: `torch.device.type`, such as "cpu" or "cuda".

    Returns:
        None if it can, else the reason why not, as a sentence.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; install the extra sod-kernels[triton]."
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST:
        oldest = ".".join(str(part) for part in _OLDEST)
        return f"Triton {triton.__version__} is older than {oldest}, the oldest that is supported."
    if device_type == "cpu":
        if _is_interpreted():
            return None
        return "Triton runs on CPU tensors only if TRITON_INTERPRET=1 is set before it is imported."
    if device_type != "cuda":
        return f"The Triton kernels run on CUDA devices, not on {device_type}."
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False: no usable GPU, or a torch build without CUDA."
    return None


def config_for(logits: Tensor) -> LaunchConfig:
    """Look up the configuration for the device and dtype of logits.

    Args:
        logits: Of the student.

    Returns:
        The table's entry.

    Raises:
        ValueError: If no launch configuration is listed for the device.
    """
    if _is_interpreted():
        return launch_config(INTERPRETER, logits.dtype)
    return launch_config(gpu_architecture(logits.device.index), logits.dtype)


def float64_arguments(*values: float) -> tuple[float, ...]:
    """Split float64 scalars into two float32 summands each, as Triton has no float64 arguments.

    Args:
        values: Any numbers in the range of float32.

    Returns:
        High and low part of the first, of the second, and so on.
    """
    highs = [struct.unpack("f", struct.pack("f", value))[0] for value in values]
    return tuple(part for value, high in zip(values, highs, strict=True) for part in (high, value - high))


def strides(*logits: Tensor | None) -> tuple[int, ...]:
    """List the strides of B and T of each side.

    Args:
        logits: (B, T, V) each; None for a side that is not given.

    Returns:
        Two numbers per side, in elements.
    """
    return tuple(stride for side in logits for stride in ((0, 0) if side is None else side.stride()[:2]))


def compile_options(num_warps: int, max_registers: int | None) -> dict[str, Any]:
    """Say how Triton compiles a kernel; multiply-adds are fused whatever its version has as the default.

    Args:
        num_warps: Warps per program.
        max_registers: Per thread, for the assembler; None leaves it the choice.

    Returns:
        Options of Triton, without those that a target may not know.
    """
    options: dict[str, Any] = {"num_warps": num_warps, "enable_fp_fusion": True}
    return options if max_registers is None else {**options, "maxnreg": max_registers}


def launch(
    kernel: Any, programs: int, *args: Any, num_warps: int, max_registers: int | None = None, **meta: Any
) -> None:
    """Start a kernel.

    Args:
        kernel: The decorated function.
        programs: Size of its one-dimensional grid.
        args: Its run-time arguments.
        num_warps: Warps per program.
        max_registers: Per thread, for the assembler; None leaves it the choice.
        meta: Its constexpr arguments.
    """
    kernel[(programs,)](*args, **meta, **compile_options(num_warps, max_registers))


def needs_second_sweep(divergence: str, *, has_floor: bool) -> bool:
    """Tell whether a divergence needs the log-sum-exps before its first term.

    Args:
        divergence: Of the spec.
        has_floor: Whether the spec has a floor.

    Returns:
        True for the Jensen-Shannon divergence and for a KL with a floor.
    """
    return has_floor or divergence == "jsd"


def first_measures(divergence: str, *, has_floor: bool, has_reference: bool) -> tuple[str, str]:
    """Name what the first sweep collects of the teacher and of the reference.

    Args:
        divergence: Of the spec.
        has_floor: Whether the spec has a floor.
        has_reference: Whether there is a reference.

    Returns:
        A divergence or "none", for each.
    """
    measure = "none" if needs_second_sweep(divergence, has_floor=has_floor) else divergence
    return measure, "reverse_kl" if has_reference and not has_floor else "none"


def sweep_meta(config: SweepConfig, dtype: torch.dtype, vocab_size: int) -> dict[str, int]:
    """Name the constexpr arguments that say how a forward sweep walks.

    Args:
        config: Configuration of the sweep.
        dtype: Of the logits.
        vocab_size: Valid columns.

    Returns:
        Keyword arguments; SPLITS is the number of programs per row.
    """
    return {
        "VOCAB": vocab_size,
        "BLOCK": config.block_size,
        "LANES": config.lanes,
        "VECTOR": vector_width(dtype),
        "SPLITS": num_splits(config, vocab_size),
    }


def gradient_meta(config: SweepConfig, vocab_size: int, width: int) -> dict[str, int]:
    """Name the constexpr arguments that say how the backward sweep walks.

    Args:
        config: Configuration of the sweep.
        vocab_size: Valid columns.
        width: Columns of the gradient.

    Returns:
        Keyword arguments; SPLITS is the number of programs per row.
    """
    return {
        "VOCAB": vocab_size,
        "WIDTH": width,
        "BLOCK": config.block_size,
        "SPLITS": num_splits(config, width),
    }
