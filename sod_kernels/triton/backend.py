"""The Triton backend: what the dispatcher calls, and how the kernels are launched.

Launches per forward: first sweep, a second one where the divergence needs it, one that finishes the rows, a sort
of the step ids and one that sums the steps. Per backward: one. Nothing waits for the device, nothing depends on
values on the device, so both can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import struct
from typing import TYPE_CHECKING, NamedTuple

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
from sod_kernels.types import DivergenceSpec, TokenStats

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_OLDEST = (3, 6)
_STEP_BLOCK = 1024


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
        return f"Triton {triton.__version__} is older than {_OLDEST[0]}.{_OLDEST[1]}, the oldest that is supported."
    if device_type == "cpu":
        if _is_interpreted():
            return None
        return "Triton runs on CPU tensors only if TRITON_INTERPRET=1 is set before it is imported."
    if device_type != "cuda":
        return f"The Triton kernels run on CUDA devices, not on {device_type}."
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False: no usable GPU, or a torch build without CUDA."
    return None


class _Scalars(NamedTuple):
    """Launch arguments made from a spec, each split in two float32 whose sum is the float64 value."""

    scale: tuple[float, float]
    inverse_temperature: tuple[float, float]
    beta: tuple[float, float]
    floor: tuple[float, float]
    floor_bits: tuple[float, float]


def _split_double(value: float) -> tuple[float, float]:
    high: float = struct.unpack("f", struct.pack("f", value))[0]
    return high, value - high


def _scalars(spec: DivergenceSpec) -> _Scalars:
    floor = 0.0 if spec.min_log_prob is None else spec.min_log_prob
    return _Scalars(
        scale=_split_double(math.log2(math.e) / spec.temperature),
        inverse_temperature=_split_double(1.0 / spec.temperature),
        beta=_split_double(spec.beta),
        floor=_split_double(floor),
        floor_bits=_split_double(floor * math.log2(math.e)),
    )


def _config_for(logits: Tensor) -> LaunchConfig:
    if _is_interpreted():
        return launch_config(INTERPRETER, logits.dtype)
    return launch_config(gpu_architecture(logits.device.index), logits.dtype)


def _strides(logits: Tensor) -> tuple[int, int]:
    return logits.stride(0), logits.stride(1)


def _launch(kernel: Any, programs: int, config: SweepConfig, *args: Any, **meta: Any) -> None:
    """Start a kernel; multiply-adds are fused on every Triton version, so that they all give the same bits."""
    kernel[(programs,)](*args, **meta, num_warps=config.num_warps, enable_fp_fusion=True)


def needs_second_sweep(spec: DivergenceSpec) -> bool:
    """Tell whether a divergence needs both log-sum-exps before its first term.

    Args:
        spec: What is computed.

    Returns:
        True for the Jensen-Shannon divergence and for a KL with a floor.
    """
    return spec.divergence == "jsd" or spec.min_log_prob is not None


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make the device of the student logits current: Triton launches on the current one."""

    @functools.wraps(function)
    def launch_there(*args: Any, **kwargs: Any) -> Any:
        tensor = next(argument for argument in args if isinstance(argument, Tensor))
        with torch.cuda.device_of(tensor):
            return function(*args, **kwargs)

    return launch_there


def _sweeps(
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor,
    spec: DivergenceSpec,
    config: SweepConfig,
    splits: int,
) -> tuple[Tensor, Tensor | None]:
    """Run the sweeps over the logits; returns the programs' states (N, 6, splits) and sums (N, 2, splits)."""
    from sod_kernels.triton.forward_kernels import first_sweep_kernel, second_sweep_kernel

    rows = step_ids.numel()
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    state = torch.empty((rows, 6, splits), dtype=dtype, device=step_ids.device)
    scalars = _scalars(spec)
    place = (step_ids.shape[1], *_strides(student_logits), *_strides(teacher_logits))
    meta = {
        "VOCAB": spec.vocab_size,
        "BLOCK": config.block_size,
        "LANES": config.lanes,
        "VECTOR": vector_width(student_logits.dtype),
        "SPLITS": splits,
    }
    two_sweeps = needs_second_sweep(spec)
    tensors = (student_logits, teacher_logits, step_ids, state)
    measure = "none" if two_sweeps else spec.divergence
    _launch(
        first_sweep_kernel, rows * splits, config, *tensors, *place, *scalars.scale, MEASURE=measure, **meta
    )
    if not two_sweeps:
        return state, None
    partial = torch.empty((rows, 2, splits), dtype=dtype, device=step_ids.device)
    numbers = (*scalars.scale, *scalars.beta, *scalars.floor_bits)
    _launch(
        second_sweep_kernel,
        rows * splits,
        config,
        *tensors,
        partial,
        *place,
        *numbers,
        DIVERGENCE=spec.divergence,
        **meta,
    )
    return state, partial


def _step_sums(step_ids: Tensor, num_steps: int, stats: list[Tensor], has_sampled: bool) -> Tensor:
    """Sum the token statistics of each step in a fixed order: (num_steps, 5) float64."""
    from sod_kernels.triton.finish_kernels import step_sums_kernel

    # A stable sort costs microseconds and makes one program per step enough: no float atomics, any order of ids.
    ordered, order = torch.sort(step_ids.reshape(-1), stable=True)
    steps = torch.arange(num_steps + 1, device=step_ids.device, dtype=step_ids.dtype)
    edges = torch.searchsorted(ordered, steps)
    token_kl, student_log_probs, teacher_log_probs, student_entropy = stats
    step_sums = torch.empty((num_steps, 5), dtype=torch.float64, device=step_ids.device)
    step_sums_kernel[(num_steps,)](
        order,
        edges,
        token_kl,
        student_log_probs if has_sampled else None,
        teacher_log_probs if has_sampled else None,
        student_entropy,
        step_sums,
        BLOCK=_STEP_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return step_sums


@_on_device
def forward(
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor,
    sampled_ids: Tensor | None,
    num_steps: int,
    spec: DivergenceSpec,
    *,
    config: SweepConfig | None = None,
) -> TokenStats:
    """Compute all per-token and per-step statistics of a pair of logits.

    Args:
        student_logits: (B, T, V) floating, last stride 1.
        teacher_logits: (B, T, V') of the same dtype, last stride 1.
        step_ids: (B, T) int64, -1 outside steps.
        sampled_ids: (B, T) int64, read only inside steps; None to leave the sampled log-probabilities out.
        num_steps: Number of steps S; ids lie in [0, S).
        spec: What to compute.
        config: Launch configuration instead of the table's, for tuning and tests.

    Returns:
        The statistics; see `TokenStats`.

    Raises:
        ValueError: If no launch configuration is listed for the device.
    """
    from sod_kernels.triton.finish_kernels import finish_rows_kernel

    config = config or _config_for(student_logits).forward
    splits = num_splits(config, spec.vocab_size)
    state, partial = _sweeps(student_logits, teacher_logits, step_ids, spec, config, splits)
    outputs = [torch.empty(step_ids.shape, dtype=state.dtype, device=state.device) for _ in range(7)]
    if sampled_ids is None:
        outputs[1], outputs[2] = state.new_empty(0), state.new_empty(0)
    scalars = _scalars(spec)
    finish_rows_kernel[(step_ids.numel(),)](
        student_logits,
        teacher_logits,
        step_ids,
        sampled_ids,
        state,
        partial,
        *outputs,
        step_ids.shape[1],
        *_strides(student_logits),
        *_strides(teacher_logits),
        *scalars.scale,
        spec.beta,
        *scalars.floor_bits,
        DIVERGENCE=spec.divergence,
        HAS_FLOOR=spec.min_log_prob is not None,
        SPLITS=splits,
        num_warps=1,
        enable_fp_fusion=True,
    )
    step_sums = _step_sums(step_ids, num_steps, outputs[:4], sampled_ids is not None)
    return TokenStats(*outputs, step_sums)


@_on_device
def backward(
    grad_token_kl: Tensor,
    grad_student_log_probs: Tensor,
    grad_student_entropy: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor,
    sampled_ids: Tensor | None,
    student_lse: Tensor,
    teacher_lse: Tensor,
    kl_aux: Tensor,
    student_entropy: Tensor,
    spec: DivergenceSpec,
    *,
    config: SweepConfig | None = None,
) -> Tensor:
    """Compute the gradient with respect to the student logits in one sweep.

    Args:
        grad_token_kl: (B, T) upstream gradient of token_kl.
        grad_student_log_probs: (B, T) upstream gradient of student_log_probs; not read without `sampled_ids`.
        grad_student_entropy: (B, T) upstream gradient of student_entropy.
        student_logits: (B, T, V), as in the forward.
        teacher_logits: (B, T, V'), as in the forward.
        step_ids: (B, T), as in the forward.
        sampled_ids: (B, T) or None, as in the forward.
        student_lse: (B, T) from the forward.
        teacher_lse: (B, T) from the forward.
        kl_aux: (B, T) from the forward of this backend.
        student_entropy: (B, T) from the forward.
        spec: As in the forward.
        config: Launch configuration instead of the table's, for tuning and tests.

    Returns:
        (B, T, V) contiguous, dtype of `student_logits`; 0 outside steps and beyond the valid columns.

    Raises:
        ValueError: If no launch configuration is listed for the device.
    """
    from sod_kernels.triton.backward_kernels import backward_kernel

    config = config or _config_for(student_logits).backward
    width = student_logits.shape[2]
    splits = num_splits(config, width)
    grad = torch.empty(student_logits.shape, dtype=student_logits.dtype, device=student_logits.device)
    scalars = _scalars(spec)
    _launch(
        backward_kernel,
        step_ids.numel() * splits,
        config,
        grad,
        student_logits,
        teacher_logits,
        step_ids,
        sampled_ids,
        student_lse,
        teacher_lse,
        kl_aux,
        student_entropy,
        grad_token_kl.contiguous(),
        None if sampled_ids is None else grad_student_log_probs.contiguous(),
        grad_student_entropy.contiguous(),
        step_ids.shape[1],
        *_strides(student_logits),
        *_strides(teacher_logits),
        *scalars.inverse_temperature,
        *scalars.beta,
        *scalars.floor,
        DIVERGENCE=spec.divergence,
        HAS_FLOOR=spec.min_log_prob is not None,
        VOCAB=spec.vocab_size,
        WIDTH=width,
        BLOCK=config.block_size,
        SPLITS=splits,
    )
    return grad
