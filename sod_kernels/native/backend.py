"""Runs `step_kl`'s two sweeps in the compiled libraries: C++ for CPU tensors, CUDA C++ for CUDA tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sod_kernels.native import loader
from sod_kernels.types import DivergenceSpec, TokenStats

# The numbers of the enums in csrc/include/sod.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_DIVERGENCES = {"reverse_kl": 0, "forward_kl": 1, "jsd": 2}
_NUM_STEP_COLUMNS = 5
# From here on a CPU gradient gets pages that are kept between uses; smaller ones come from the heap anyway.
_KEPT_PAGES_FROM_BYTES = 8 << 20


def availability(device_type: str) -> str | None:
    """Tell whether the compiled library for a kind of device can run here.

    Args:
        device_type: A torch device type, "cpu" or "cuda".

    Returns:
        None if it can run, otherwise the reason why not, as a sentence.
    """
    if device_type not in loader.MODULES:
        return f'The native backend has no kernels for device type "{device_type}", only for CPU and CUDA.'
    return loader.unavailable_reason(device_type)


def forward(
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor,
    sampled_ids: Tensor | None,
    num_steps: int,
    spec: DivergenceSpec,
) -> TokenStats:
    """Compute the token statistics of every row of a step and their sums per step.

    The arguments must have passed the checks of the functional layer; only what would be unsafe is looked at.

    Args:
        student_logits: (B, T, V*) float32, bfloat16 or float16; any strides for B and T, 1 for V.
        teacher_logits: (B, T, V*) of the same dtype and device; its width may differ.
        step_ids: (B, T) int64, contiguous; negative where the row belongs to no step.
        sampled_ids: (B, T) int64, contiguous, or None.
        num_steps: Number of steps S.
        spec: What to compute.

    Returns:
        The statistics; every element is written.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
        NativeUnavailableError: The library for the tensors' device cannot run here.
    """
    library = loader.load(student_logits.device.type)
    inputs = _inputs(library, student_logits, teacher_logits, step_ids, sampled_ids, spec)
    device = student_logits.device
    # (B, T) each
    token_kl, entropy, student_lse, teacher_lse, kl_aux = (
        torch.empty(step_ids.shape, dtype=torch.float32, device=device) for _ in range(5)
    )
    sampled_shape = step_ids.shape if sampled_ids is not None else (0,)
    student_log_probs, teacher_log_probs = (
        torch.empty(sampled_shape, dtype=torch.float32, device=device) for _ in range(2)
    )
    step_sums = torch.empty((num_steps, _NUM_STEP_COLUMNS), dtype=torch.float64, device=device)
    stats = TokenStats(
        token_kl, student_log_probs, teacher_log_probs, entropy, student_lse, teacher_lse, kl_aux, step_sums
    )
    outputs = library.Outputs(**_addresses(stats._asdict()), num_steps=num_steps)
    library.forward(inputs, outputs, **_execution(device))
    return stats


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
) -> Tensor:
    """Compute the gradient of the student logits from the three upstream gradients.

    Args:
        grad_token_kl: (B, T) float32.
        grad_student_log_probs: (B, T) float32; not read without `sampled_ids`.
        grad_student_entropy: (B, T) float32.
        student_logits: As in `forward`.
        teacher_logits: As in `forward`.
        step_ids: As in `forward`.
        sampled_ids: As in `forward`.
        student_lse: (B, T) float32 from `forward`, like the three after it.
        teacher_lse: (B, T) float32.
        kl_aux: (B, T) float32.
        student_entropy: (B, T) float32.
        spec: What `forward` computed.

    Returns:
        (B, T, V*) like `student_logits`, contiguous; 0 at rows of no step and at padding columns.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
        NativeUnavailableError: The library for the tensors' device cannot run here.
    """
    library = loader.load(student_logits.device.type)
    inputs = _inputs(library, student_logits, teacher_logits, step_ids, sampled_ids, spec)
    # (B, T, V*)
    grad_student_logits = _empty_gradient(library, student_logits)
    tensors = {
        # Autograd hands in expanded scalars and the like; these are small.
        "grad_token_kl": grad_token_kl.contiguous(),
        "grad_student_log_probs": grad_student_log_probs.contiguous(),
        "grad_student_entropy": grad_student_entropy.contiguous(),
        "student_lse": student_lse,
        "teacher_lse": teacher_lse,
        "kl_aux": kl_aux,
        "student_entropy": student_entropy,
        "grad_student_logits": grad_student_logits,
    }
    upstream = library.Upstream(**_addresses(tensors), width=student_logits.shape[-1])
    library.backward(inputs, upstream, **_execution(student_logits.device))
    return grad_student_logits


def release_memory() -> int:
    """Give the pages of the last large CPU gradient back to the system.

    They are kept for the next gradient, marked so that the system may take them when it is short of memory;
    until then tools count them as used.

    Returns:
        How many bytes were kept.

    Raises:
        NativeUnavailableError: The CPU library cannot run here.
    """
    num_bytes: int = loader.load("cpu").release_kept_pages()
    return num_bytes


def _empty_gradient(library: Any, like: Tensor) -> Tensor:
    """Allocate an uninitialised, contiguous tensor; a large one on the CPU takes over kept pages."""
    num_bytes = like.numel() * like.element_size()
    if like.device.type != "cpu" or num_bytes < _KEPT_PAGES_FROM_BYTES:
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return torch.frombuffer(library.Pages(num_bytes), dtype=like.dtype).view(like.shape)


def _addresses(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name the addresses like their tensors; the caller keeps the tensors alive."""
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def _inputs(
    library: Any,
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor,
    sampled_ids: Tensor | None,
    spec: DivergenceSpec,
) -> Any:
    """Turn checked tensors into the library's argument struct; the caller keeps the tensors alive."""
    dtype = student_logits.dtype
    if dtype not in _DTYPES:
        raise TypeError(
            f"native backend: student_logits has dtype {dtype}, but the compiled kernels take float32, "
            'bfloat16 and float16. Convert the logits, or use backend="reference".'
        )
    batch, time, _ = student_logits.shape
    floor = -math.inf if spec.min_log_prob is None else spec.min_log_prob
    return library.Inputs(
        student=student_logits.data_ptr(),
        student_stride_batch=student_logits.stride(0),
        student_stride_time=student_logits.stride(1),
        teacher=teacher_logits.data_ptr(),
        teacher_stride_batch=teacher_logits.stride(0),
        teacher_stride_time=teacher_logits.stride(1),
        dtype=_DTYPES[dtype],
        batch=batch,
        time=time,
        vocab_size=spec.vocab_size,
        divergence=_DIVERGENCES[spec.divergence],
        beta=spec.beta,
        temperature=spec.temperature,
        min_log_prob=floor,
        step_ids=step_ids.data_ptr(),
        sampled_ids=0 if sampled_ids is None else sampled_ids.data_ptr(),
    )


def _execution(device: torch.device) -> dict[str, int]:
    """Where and how wide a call runs: the thread count on the CPU, device and current stream on CUDA."""
    if device.type == "cpu":
        return {"num_threads": torch.get_num_threads()}
    index = device.index if device.index is not None else torch.cuda.current_device()
    return {"device": index, "stream": torch.cuda.current_stream(device).cuda_stream}
