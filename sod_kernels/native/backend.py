"""Runs the sweeps in the compiled libraries: C++ for CPU tensors, CUDA C++ for CUDA tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sod_kernels.native import loader, memory
from sod_kernels.native.arguments import DIVERGENCES, addresses, dtype_number
from sod_kernels.native.units import unit_backward, unit_forward
from sod_kernels.types import (
    DivergenceSpec,
    LogProbGradients,
    LogProbInputs,
    LogProbStats,
    RowState,
    TokenGradients,
    TokenInputs,
    TokenStats,
)

__all__ = [
    "availability",
    "backward",
    "forward",
    "forward_backward",
    "log_probs_backward",
    "log_probs_forward",
    "release_memory",
    "unit_backward",
    "unit_forward",
]

_NUM_STEP_COLUMNS = 5
_NUM_LOG_PROB_STATE_COLUMNS = 2


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


def forward(inputs: TokenInputs, num_steps: int, spec: DivergenceSpec) -> TokenStats:
    """Compute the token statistics of every row of a step and their sums per step.

    The arguments must have passed the checks of the functional layer; only what would be unsafe is looked at.

    Args:
        inputs: Logits in float32, bfloat16 or float16, any strides for B and T; step ids and sampled ids.
        num_steps: Number of steps S.
        spec: What to compute.

    Returns:
        The statistics; every element is written.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
        NativeUnavailableError: The library for the tensors' device cannot run here.
    """
    device = inputs.student_logits.device
    library, stats = loader.load(device.type), _new_stats(inputs, num_steps)
    library.forward(
        problem=_problem(library, "forward", inputs, spec),
        outputs=library.Outputs(**addresses(stats), num_steps=num_steps),
        **_execution(device),
    )
    return stats


def backward(
    upstream: TokenGradients,
    inputs: TokenInputs,
    row_state: Tensor,
    spec: DivergenceSpec,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Compute the gradient of the student logits from the upstream gradients.

    Args:
        upstream: (B, T) float32 each, contiguous.
        inputs: As in `forward`.
        row_state: (B, T, 7) float64 from `forward`.
        spec: What `forward` computed.
        out: Takes the gradient; may be the student's logits. None for a fresh tensor.

    Returns:
        (B, T, V*) like `student_logits`, contiguous; 0 at rows of no step and at padding columns.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
        ValueError: `out` cannot be written without spoiling other memory.
        NativeUnavailableError: The library for the tensors' device cannot run here.
    """
    student = inputs.student_logits
    library = loader.load(student.device.type)
    problem = _problem(library, "backward", inputs, spec)
    gradient = memory.empty_like(student) if out is None else _checked("backward", out, student)
    library.backward(
        problem=problem,
        upstream=library.Upstream(**addresses(upstream), row_state=row_state.data_ptr()),
        gradient=library.Gradient(data=gradient.data_ptr(), width=student.shape[-1]),
        **_execution(student.device),
    )
    return gradient


def forward_backward(
    upstream: TokenGradients,
    inputs: TokenInputs,
    num_steps: int,
    spec: DivergenceSpec,
    *,
    out: Tensor | None = None,
) -> tuple[TokenStats, Tensor]:
    """Compute statistics and gradient in one visit to each row, as `forward` and `backward` do in two.

    On the CPU the same bits; on CUDA, where several blocks may share a row, the same within rounding.

    Args:
        upstream: As in `backward`.
        inputs: As in `forward`, like the next two.
        num_steps: Number of steps S.
        spec: What to compute.
        out: As in `backward`.

    Returns:
        The statistics and the gradient of the student logits.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
        ValueError: `out` cannot be written without spoiling other memory.
        NativeUnavailableError: The library for the tensors' device cannot run here.
    """
    student = inputs.student_logits
    library, stats = loader.load(student.device.type), _new_stats(inputs, num_steps)
    problem = _problem(library, "forward_backward", inputs, spec)
    gradient = memory.empty_like(student) if out is None else _checked("forward_backward", out, student)
    library.forward_backward(
        problem=problem,
        upstream=library.Upstream(**addresses(upstream), row_state=stats.row_state.data_ptr()),
        outputs=library.Outputs(**addresses(stats), num_steps=num_steps),
        gradient=library.Gradient(data=gradient.data_ptr(), width=student.shape[-1]),
        **_execution(student.device),
    )
    return stats, gradient


def log_probs_forward(inputs: LogProbInputs) -> LogProbStats:
    """Compute the log-probabilities of K ids per row and the entropy, of the student alone.

    Args:
        inputs: Logits in float32, bfloat16 or float16, any strides for B and T; step ids, and ids.

    Returns:
        The statistics; every element is written.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
        NativeUnavailableError: The library for the tensors' device cannot run here.
    """
    device, shape = inputs.student_logits.device, inputs.step_ids.shape
    library = loader.load(device.type)
    stats = LogProbStats(
        log_probs=torch.empty(inputs.ids.shape, dtype=torch.float32, device=device),
        student_entropy=torch.empty(shape, dtype=torch.float32, device=device),
        row_state=torch.empty((*shape, _NUM_LOG_PROB_STATE_COLUMNS), dtype=torch.float64, device=device),
    )
    library.log_probs_forward(
        problem=_log_prob_problem(library, "log_probs_forward", inputs),
        outputs=library.LogProbOutputs(**addresses(stats)),
        **_execution(device),
    )
    return stats


def log_probs_backward(
    upstream: LogProbGradients, inputs: LogProbInputs, row_state: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Compute the gradient of the student logits from those of the log-probabilities and the entropy.

    Args:
        upstream: (B, T, K) and (B, T) float32, contiguous.
        inputs: As in `log_probs_forward`.
        row_state: (B, T, 2) float64 from `log_probs_forward`.
        out: Takes the gradient; may be the student's logits. None for a fresh tensor.

    Returns:
        (B, T, V*) like `student_logits`, contiguous; 0 at rows of no step and at padding columns.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
        ValueError: `out` cannot be written without spoiling other memory.
        NativeUnavailableError: The library for the tensors' device cannot run here.
    """
    student = inputs.student_logits
    library = loader.load(student.device.type)
    problem = _log_prob_problem(library, "log_probs_backward", inputs)
    gradient = memory.empty_like(student) if out is None else _checked("log_probs_backward", out, student)
    # The CUDA kernel writes over the logits before it comes back to those of the ids.
    picked = torch.empty_like(upstream.log_probs) if student.device.type == "cuda" else None
    library.log_probs_backward(
        problem=problem,
        upstream=library.LogProbUpstream(
            **addresses(upstream),
            row_state=row_state.data_ptr(),
            picked=0 if picked is None else picked.data_ptr(),
        ),
        gradient=library.Gradient(data=gradient.data_ptr(), width=student.shape[-1]),
        **_execution(student.device),
    )
    return gradient


def release_memory() -> int:
    """Give the pages of large CPU tensors that died back to the system.

    Those of the last few gradients and scratch buffers are kept for the next ones, marked so that the system
    may take them when it is short of memory; until then tools count them as used.

    Returns:
        How many bytes were kept.

    Raises:
        NativeUnavailableError: The CPU library cannot run here.
    """
    num_bytes: int = loader.load("cpu").release_kept_pages()
    return num_bytes


def _new_stats(inputs: TokenInputs, num_steps: int) -> TokenStats:
    """Memory that the forward sweep fills."""
    device, shape = inputs.student_logits.device, inputs.step_ids.shape

    def tokens(is_given: bool = True) -> Tensor:
        return torch.empty(shape if is_given else (0,), dtype=torch.float32, device=device)

    has_sampled = inputs.sampled_ids is not None
    return TokenStats(
        token_kl=tokens(),
        token_reference_kl=tokens(inputs.reference_logits is not None),
        student_log_probs=tokens(has_sampled),
        teacher_log_probs=tokens(has_sampled),
        student_entropy=tokens(),
        row_state=torch.empty((*shape, len(RowState)), dtype=torch.float64, device=device),
        step_sums=torch.empty((num_steps, _NUM_STEP_COLUMNS), dtype=torch.float64, device=device),
    )


def _checked(function: str, out: Tensor, like: Tensor) -> Tensor:
    """Refuse memory that the kernels would spoil: they know of `out` only its address."""
    wanted = (like.shape, like.dtype, like.device)
    if (out.shape, out.dtype, out.device) != wanted or not out.is_contiguous():
        raise ValueError(
            f"native {function}: out is {tuple(out.shape)} {out.dtype} on {out.device} with strides "
            f"{out.stride()}; wanted a contiguous tensor like student_logits, {tuple(like.shape)} "
            f"{like.dtype} on {like.device}. Pass such a tensor, or None."
        )
    # Not the strides: those of a dimension of size 1 may be anything.
    if _overlap(out, like) and not (out.data_ptr() == like.data_ptr() and like.is_contiguous()):
        raise ValueError(
            f"native {function}: out shares memory with student_logits but does not start there with "
            f"the same strides; got {out.stride()} beside {like.stride()}. Pass student_logits itself, made "
            "contiguous, or other memory."
        )
    return out


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors reach over the same addresses; parts of one storage may well not."""
    if not one.numel() or not other.numel():
        return False
    (first, end), (start, last) = _extent(one), _extent(other)
    return first < last and start < end


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first entry and behind the last one; no stride is negative."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    entries = 1 + sum((size - 1) * stride for size, stride in steps)
    return tensor.data_ptr(), tensor.data_ptr() + entries * tensor.element_size()


def _logits(library: Any, logits: Tensor | None) -> Any:
    if logits is None:
        return library.Logits(data=0, stride_batch=0, stride_time=0)
    return library.Logits(data=logits.data_ptr(), stride_batch=logits.stride(0), stride_time=logits.stride(1))


def _rows(
    library: Any, function: str, logits: Tensor, step_ids: Tensor, *, vocab_size: int, temperature: float
) -> Any:
    return library.Rows(
        dtype=dtype_number(function, logits),
        batch=logits.shape[0],
        time=logits.shape[1],
        vocab_size=vocab_size,
        temperature=temperature,
        step_ids=step_ids.data_ptr(),
    )


def _problem(library: Any, function: str, inputs: TokenInputs, spec: DivergenceSpec) -> Any:
    """Turn checked tensors into the library's argument struct; the caller keeps the tensors alive."""
    return library.Problem(
        rows=_rows(
            library,
            function,
            inputs.student_logits,
            inputs.step_ids,
            vocab_size=spec.vocab_size,
            temperature=spec.temperature,
        ),
        student=_logits(library, inputs.student_logits),
        teacher=_logits(library, inputs.teacher_logits),
        reference=_logits(library, inputs.reference_logits),
        divergence=DIVERGENCES[spec.divergence],
        beta=spec.beta,
        min_log_prob=-math.inf if spec.min_log_prob is None else spec.min_log_prob,
        sampled_ids=0 if inputs.sampled_ids is None else inputs.sampled_ids.data_ptr(),
    )


def _log_prob_problem(library: Any, function: str, inputs: LogProbInputs) -> Any:
    return library.LogProbProblem(
        rows=_rows(
            library,
            function,
            inputs.student_logits,
            inputs.step_ids,
            vocab_size=inputs.vocab_size,
            temperature=inputs.temperature,
        ),
        student=_logits(library, inputs.student_logits),
        ids=inputs.ids.data_ptr(),
        num_ids=inputs.ids.shape[-1],
    )


def _execution(device: torch.device) -> dict[str, int]:
    """Where and how wide a call runs: the thread count on the CPU, device and current stream on CUDA."""
    if device.type == "cpu":
        return {"num_threads": torch.get_num_threads()}
    index = device.index if device.index is not None else torch.cuda.current_device()
    return {"device": index, "stream": torch.cuda.current_stream(device).cuda_stream}
