"""The Triton backend: what the dispatcher calls, and how the kernels are launched.

Launches per forward: first sweep, a second one where the divergence needs it, one that finishes the rows, a
sort of the step ids and one that sums the steps. Per backward: one. Nothing waits for the device, nothing
depends on values on the device, so both can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sod_kernels.triton.config import (
    INTERPRETER,
    STEP_SUMS_BLOCK,
    STEP_SUMS_WARPS,
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


def _scalars(spec: DivergenceSpec) -> tuple[float, ...]:
    """Launch arguments of a spec: 1/temperature, beta and the floor, each as two float32 summands."""
    values = (1.0 / spec.temperature, spec.beta, spec.min_log_prob or 0.0)
    highs = [struct.unpack("f", struct.pack("f", value))[0] for value in values]
    return tuple(part for value, high in zip(values, highs, strict=True) for part in (high, value - high))


def _config_for(logits: Tensor) -> LaunchConfig:
    if _is_interpreted():
        return launch_config(INTERPRETER, logits.dtype)
    return launch_config(gpu_architecture(logits.device.index), logits.dtype)


def _strides(logits: Tensor) -> tuple[int, int]:
    return logits.stride(0), logits.stride(1)


def _launch(kernel: Any, programs: int, config: SweepConfig, *args: Any, **meta: Any) -> None:
    """Start a kernel; multiply-adds are fused whatever the Triton version has as its default."""
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
        first_sweep_kernel, rows * splits, config, *tensors, *place, *scalars[:2], MEASURE=measure, **meta
    )
    if not two_sweeps:
        return state, None
    partial = torch.empty((rows, 2, splits), dtype=dtype, device=step_ids.device)
    _launch(
        second_sweep_kernel,
        rows * splits,
        config,
        *tensors,
        partial,
        *place,
        *scalars,
        DIVERGENCE=spec.divergence,
        **meta,
    )
    return state, partial


def _step_sums(
    step_ids: Tensor, num_steps: int, stats: tuple[Tensor, Tensor, Tensor, Tensor], *, has_sampled: bool
) -> Tensor:
    """Sum the token statistics of each step in a fixed order: (num_steps, 5) float64."""
    from sod_kernels.triton.finish_kernels import step_sums_kernel

    # A stable sort costs microseconds and makes one program per step enough: no float atomics, any order of
    # ids.
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
        BLOCK=STEP_SUMS_BLOCK,
        num_warps=STEP_SUMS_WARPS,
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
    sampled_shape = (0,) if sampled_ids is None else step_ids.shape
    token_kl, student_entropy, student_lse, teacher_lse, kl_aux = (
        state.new_empty(step_ids.shape) for _ in range(5)
    )
    student_log_probs, teacher_log_probs = (state.new_empty(sampled_shape) for _ in range(2))
    finish_rows_kernel[(step_ids.numel(),)](
        student_logits,
        teacher_logits,
        step_ids,
        sampled_ids,
        state,
        partial,
        token_kl,
        student_log_probs,
        teacher_log_probs,
        student_entropy,
        student_lse,
        teacher_lse,
        kl_aux,
        step_ids.shape[1],
        *_strides(student_logits),
        *_strides(teacher_logits),
        *_scalars(spec),
        DIVERGENCE=spec.divergence,
        HAS_FLOOR=spec.min_log_prob is not None,
        SPLITS=splits,
        num_warps=1,
        enable_fp_fusion=True,
    )
    stats = (token_kl, student_log_probs, teacher_log_probs, student_entropy)
    step_sums = _step_sums(step_ids, num_steps, stats, has_sampled=sampled_ids is not None)
    return TokenStats(*stats, student_lse, teacher_lse, kl_aux, step_sums)


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
        *_scalars(spec),
        DIVERGENCE=spec.divergence,
        HAS_FLOOR=spec.min_log_prob is not None,
        VOCAB=spec.vocab_size,
        WIDTH=width,
        BLOCK=config.block_size,
        SPLITS=splits,
    )
    return grad
