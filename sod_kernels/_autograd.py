"""The two custom ops that torch sees: one forward sweep, one backward sweep, whatever is built on top.

As torch.library ops with fake kernels they stay whole under torch.compile, export and CUDA-graph capture; the
backend is an argument, so a compiled graph shows which one it runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels.types import DivergenceSpec, TokenStats

_NAMESPACE = "sod_kernels"
_OPTIONS = (
    "str divergence, float beta, float temperature, SymInt vocab_size, float? min_log_prob, str backend"
)
_INPUTS = "Tensor student_logits, Tensor teacher_logits, Tensor step_ids, Tensor? sampled_ids"
_FORWARD = (
    f"step_kl_forward({_INPUTS}, SymInt num_steps, {_OPTIONS}) -> (Tensor token_kl, Tensor "
    "student_log_probs, "
    "Tensor teacher_log_probs, Tensor student_entropy, Tensor student_lse, Tensor teacher_lse, Tensor "
    "kl_aux, "
    "Tensor step_sums)"
)
_BACKWARD = (
    "step_kl_backward(Tensor grad_token_kl, Tensor grad_student_log_probs, Tensor grad_student_entropy, "
    f"{_INPUTS}, Tensor student_lse, Tensor teacher_lse, Tensor kl_aux, Tensor student_entropy, "
    f"{_OPTIONS}) -> Tensor"
)


def _spec(
    divergence: str, beta: float, temperature: float, vocab_size: int, min_log_prob: float | None
) -> DivergenceSpec:
    return DivergenceSpec(
        divergence=divergence,
        beta=beta,
        temperature=temperature,
        vocab_size=vocab_size,
        min_log_prob=min_log_prob,
    )


def _new_outputs(step_ids: Tensor, dtype: torch.dtype, has_sampled: bool, num_steps: int) -> TokenStats:
    """Zeros of the shapes and dtypes that a backend returns."""
    out_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = [step_ids.shape] * 7
    if not has_sampled:
        shapes[1] = shapes[2] = torch.Size([0])
    tokens = [step_ids.new_zeros(shape, dtype=out_dtype) for shape in shapes]
    step_sums = step_ids.new_zeros(num_steps, 5, dtype=torch.float64)
    return TokenStats._make((*tokens, step_sums))


def _run_forward(
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor,
    sampled_ids: Tensor | None,
    num_steps: int,
    divergence: str,
    beta: float,
    temperature: float,
    vocab_size: int,
    min_log_prob: float | None,
    backend: str,
) -> TokenStats:
    if step_ids.numel() == 0 or num_steps == 0:
        return _new_outputs(step_ids, student_logits.dtype, sampled_ids is not None, num_steps)
    spec = _spec(divergence, beta, temperature, vocab_size, min_log_prob)
    run = _dispatch.load(backend).forward
    return run(student_logits, teacher_logits, step_ids, sampled_ids, num_steps, spec)


def _fake_forward(
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor,
    sampled_ids: Tensor | None,
    num_steps: int,
    *options: Any,
) -> TokenStats:
    return _new_outputs(step_ids, student_logits.dtype, sampled_ids is not None, num_steps)


def _run_backward(
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
    divergence: str,
    beta: float,
    temperature: float,
    vocab_size: int,
    min_log_prob: float | None,
    backend: str,
) -> Tensor:
    if step_ids.numel() == 0:
        return student_logits.new_zeros(student_logits.shape)
    return _dispatch.load(backend).backward(
        grad_token_kl,
        grad_student_log_probs,
        grad_student_entropy,
        student_logits,
        teacher_logits,
        step_ids,
        sampled_ids,
        student_lse,
        teacher_lse,
        kl_aux,
        student_entropy,
        _spec(divergence, beta, temperature, vocab_size, min_log_prob),
    )


def _fake_backward(
    grad_token_kl: Tensor,
    grad_student_log_probs: Tensor,
    grad_student_entropy: Tensor,
    student_logits: Tensor,
    *others: Any,
) -> Tensor:
    return student_logits.new_empty(student_logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    student_logits, teacher_logits, step_ids, sampled_ids, _, *options = inputs
    stats = TokenStats(*output)
    ctx.mark_non_differentiable(
        stats.teacher_log_probs, stats.student_lse, stats.teacher_lse, stats.kl_aux, stats.step_sums
    )
    kept = (stats.student_lse, stats.teacher_lse, stats.kl_aux, stats.student_entropy)
    ctx.save_for_backward(student_logits, teacher_logits, step_ids, sampled_ids, *kept)
    ctx.options = options


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    upstream = (grads[0], grads[1], grads[3])
    grad = torch.ops.sod_kernels.step_kl_backward(
        *(each.contiguous() for each in upstream), *ctx.saved_tensors, *ctx.options
    )
    return (grad, *(None,) * 10)


def _refuse_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "step_kl: the gradient of the gradient was asked for, which the backward sweep does not have. "
        "Call backward without create_graph=True."
    )


def _register() -> Any:
    # Typed loosely: torch ships no annotations for these methods.
    make_library: Any = torch.library.Library
    library = make_library(_NAMESPACE, "FRAGMENT")
    for schema, run, fake in (
        (_FORWARD, _run_forward, _fake_forward),
        (_BACKWARD, _run_backward, _fake_backward),
    ):
        name = schema.partition("(")[0]
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=library)
    torch.library.register_autograd(
        f"{_NAMESPACE}::step_kl_forward", _differentiate, setup_context=_setup_context, lib=library
    )
    torch.library.register_autograd(f"{_NAMESPACE}::step_kl_backward", _refuse_double_backward, lib=library)
    return library


# Op names are global to the process, and dropping the library would remove them: keep it, register it once.
if not hasattr(getattr(torch.ops, _NAMESPACE), "step_kl_forward"):
    _LIBRARY = _register()

step_kl_forward = torch.ops.sod_kernels.step_kl_forward
step_kl_backward = torch.ops.sod_kernels.step_kl_backward
