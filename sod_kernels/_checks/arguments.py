"""Checks of the arguments of `step_kl`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels._checks.values import (
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    SIGNED_DTYPES,
    can_look,
    check_choice,
    check_count,
    check_ids,
    check_mask,
    check_number,
    check_tensor,
)

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
STEP_DIVERGENCES = ("kl", "abs_log_ratio")
REDUCTIONS = ("none", "sum", "token_mean", "step_mean", "sequence_mean")
BACKENDS = ("auto", "reference", "native", "triton")


def check_logits(function: str, student_logits: Any, others: dict[str, Any], vocab_size: int | None) -> int:
    """Check the student's logits and those they are compared with, if any.

    Args:
        function: Name for the message.
        student_logits: (N, V) or (B, T, V).
        others: Argument name to logits of the same leading shape, dtype and device.
        vocab_size: Valid columns of all; None if the widths are equal and every column is valid.

    Returns:
        Number of valid columns.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or width.
    """
    check_tensor(function, "student_logits", student_logits, dtypes=FLOAT_DTYPES)
    if student_logits.dim() not in (2, 3):
        raise ValueError(
            f"{function}: student_logits has shape {tuple(student_logits.shape)}; wanted (N, V) or (B, T, V)."
        )
    leading, width = tuple(student_logits.shape[:-1]), student_logits.shape[-1]
    size = width if vocab_size is None else vocab_size
    for name, logits in others.items():
        check_tensor(function, name, logits, dtypes=(student_logits.dtype,), device=student_logits.device)
        if logits.dim() == 0 or tuple(logits.shape[:-1]) != leading:
            raise ValueError(
                f"{function}: {name} has shape {tuple(logits.shape)}; wanted {leading} before the "
                "vocabulary, as student_logits has."
            )
        if vocab_size is None and width != logits.shape[-1]:
            raise ValueError(
                f"{function}: student_logits has {width} columns and {name} {logits.shape[-1]}; give "
                "vocab_size=, the number of columns that mean the same token in both, if the others are "
                "padding."
            )
    check_count(function, "vocab_size", size, at_least=1)
    if not others and size > width:
        raise ValueError(
            f"{function}: vocab_size={size}; wanted at most {width}, the columns of student_logits."
        )
    for name, logits in others.items():
        if size > min(width, logits.shape[-1]):
            raise ValueError(
                f"{function}: vocab_size={size}; wanted at most {min(width, logits.shape[-1])}, the narrower "
                f"of student_logits ({width} columns) and {name} ({logits.shape[-1]})."
            )
    return size


def check_divergence(
    function: str, divergence: Any, beta: Any, temperature: Any, min_log_prob: Any
) -> tuple[str, float]:
    """Check the options of a divergence, and turn the ends of "jsd" into the KL they are.

    Args:
        function: Name for the message.
        divergence: One of `DIVERGENCES`.
        beta: None or, for "jsd", the teacher's weight in [0, 1].
        temperature: Above 0.
        min_log_prob: None or below 0; not for "jsd".

    Returns:
        Divergence and beta as a backend takes them.

    Raises:
        TypeError: For a wrong type.
        ValueError: For a number out of bounds or options that exclude each other.
    """
    check_choice(function, "divergence", divergence, DIVERGENCES)
    check_number(function, "temperature", temperature, above=0.0)
    if min_log_prob is not None:
        if check_number(function, "min_log_prob", min_log_prob) >= 0.0:
            raise ValueError(
                f"{function}: min_log_prob={min_log_prob!r}; wanted a log-probability below 0, or None."
            )
        if divergence == "jsd":
            raise ValueError(
                f"{function}: min_log_prob={min_log_prob!r} with divergence='jsd', which is finite without "
                "a floor. "
                "Leave min_log_prob out."
            )
    if divergence != "jsd":
        if beta is not None:
            raise ValueError(
                f"{function}: beta={beta!r} with divergence={divergence!r}, which has no mixture. Leave "
                "beta out, or "
                "use divergence='jsd'."
            )
        return divergence, 0.5
    weight = 0.5 if beta is None else check_number(function, "beta", beta, at_least=0.0)
    if weight > 1.0:
        raise ValueError(f"{function}: beta={beta!r}; wanted the teacher's weight, from 0 to 1.")
    # The limits of JSD(beta) / (beta (1 - beta)); the mixture itself would be one side alone.
    ends = {0.0: "forward_kl", 1.0: "reverse_kl"}
    return ends.get(weight, "jsd"), weight if 0.0 < weight < 1.0 else 0.5


def check_options(function: str, step_divergence: Any, reduction: Any, backend: Any) -> None:
    """Check the options that are names.

    Args:
        function: Name for the message.
        step_divergence: One of `STEP_DIVERGENCES`.
        reduction: One of `REDUCTIONS`.
        backend: One of `BACKENDS`.

    Raises:
        TypeError: If one is no string.
        ValueError: If one is no such name.
    """
    check_choice(function, "step_divergence", step_divergence, STEP_DIVERGENCES)
    check_choice(function, "reduction", reduction, REDUCTIONS)
    check_choice(function, "backend", backend, BACKENDS)


def check_step_arguments(
    function: str, logits: Tensor, step_ids: Any, response_mask: Any, step_trajectory: Any
) -> None:
    """Check the arguments that say which token is in which step.

    Args:
        function: Name for the message.
        logits: (N, V) or (B, T, V), for the leading shape and device.
        step_ids: Leading shape, integer, or None.
        response_mask: Leading shape, 0 and 1, or None.
        step_trajectory: (S,) integer or None.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or value, or both ids and a mask.
    """
    leading, device = tuple(logits.shape[:-1]), logits.device
    if step_ids is not None and response_mask is not None:
        raise ValueError(
            f"{function}: got both step_ids and response_mask; wanted one. Put -1 into step_ids where the "
            "mask is 0."
        )
    if step_ids is not None:
        check_tensor(function, "step_ids", step_ids, shape=leading, dtypes=SIGNED_DTYPES, device=device)
    if response_mask is not None:
        check_mask(function, response_mask)
        check_tensor(function, "response_mask", response_mask, shape=leading, device=device)
    if step_trajectory is not None:
        check_tensor(function, "step_trajectory", step_trajectory, dtypes=INTEGER_DTYPES, device=device)
        if step_trajectory.dim() != 1:
            shape = tuple(step_trajectory.shape)
            raise ValueError(
                f"{function}: step_trajectory has shape {shape}; wanted (S,), one entry per step."
            )


def check_agreement(function: str, counts: dict[str, Any]) -> int | None:
    """Check that everything that tells the number of steps tells the same.

    Args:
        function: Name for the message.
        counts: Number of steps by source, None where a source tells nothing.

    Returns:
        The number of steps, None if nothing tells it.

    Raises:
        TypeError: If `num_steps` is no integer.
        ValueError: If it is negative or sources disagree.
    """
    if counts["num_steps"] is not None:
        check_count(function, "num_steps", counts["num_steps"], at_least=0)
    told = {source: count for source, count in counts.items() if count is not None}
    total = next(iter(told.values()), None)
    for source, count in told.items():
        if count != total:
            first = next(iter(told))
            raise ValueError(
                f"{function}: {source} tells {count} steps but {first} tells {total}; wanted the same."
            )
    return total


def check_may_wait(function: str, device: torch.device) -> None:
    """Refuse to read the number of steps where that is impossible.

    Args:
        function: Name for the message.
        device: Where the ids are.

    Raises:
        ValueError: In compiled code or under CUDA-graph capture.
    """
    is_capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if torch.compiler.is_compiling() or is_capturing:
        raise ValueError(
            f"{function}: num_steps is None, so the largest step id would have to be read, which compiled "
            "code and "
            "CUDA graphs cannot. Give num_steps=; steps without tokens do no harm."
        )


def check_rows_of_steps(function: str, step_ids: Tensor, row_of_step: Tensor) -> None:
    """Refuse a step whose tokens lie in several rows of a padded batch; looked at on the CPU only.

    Args:
        function: Name for the message.
        step_ids: (B, T) with valid ids.
        row_of_step: (S,) a row that has tokens of the step.

    Raises:
        ValueError: If a step has tokens in two rows.
    """
    if not can_look(step_ids) or row_of_step.numel() == 0:
        return
    rows = torch.arange(step_ids.shape[0])[:, None]
    is_odd = (step_ids >= 0) & (row_of_step[step_ids.clamp(min=0)] != rows)
    if bool(is_odd.any()):
        step = step_ids[is_odd][0].item()
        raise ValueError(
            f"{function}: step_ids has step {step} in more than one row, and each row of (B, T, V) is a "
            "trajectory. "
            "Number the steps over the whole batch, as steps_from_mask does, or give step_trajectory."
        )


def check_sampled_ids(
    function: str, sampled_ids: Any, step_ids: Tensor, *, vocab_size: int, step_divergence: str
) -> None:
    """Check the sampled ids; those at tokens in no step may be anything.

    Args:
        function: Name for the message.
        sampled_ids: Integer of the shape of `step_ids`, or None.
        step_ids: Valid step ids.
        vocab_size: Number of valid columns.
        step_divergence: As given; "abs_log_ratio" needs sampled ids.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: If they are missing, or for a wrong shape, device or id.
    """
    if sampled_ids is None:
        if step_divergence == "abs_log_ratio":
            raise ValueError(
                f"{function}: step_divergence='abs_log_ratio' compares the sampled tokens' "
                "log-probabilities; give "
                "sampled_ids, or use step_divergence='kl'."
            )
        return
    shape, device = tuple(step_ids.shape), step_ids.device
    check_tensor(function, "sampled_ids", sampled_ids, shape=shape, dtypes=INTEGER_DTYPES, device=device)
    check_ids(function, "sampled_ids", sampled_ids, low=0, high=vocab_size, counted=step_ids >= 0)


def check_loss_arguments(
    function: str, token_weights: Any, denominator: Any, *, reduction: str, like: Tensor
) -> None:
    """Check what scales the loss.

    Args:
        function: Name for the message.
        token_weights: Floating of the leading shape, or None.
        denominator: Number above 0, tensor of one element, or None.
        reduction: One of `REDUCTIONS`.
        like: Tensor of the leading shape on the wanted device.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or number, or a denominator where there is none to override.
    """
    if token_weights is not None:
        shape, device = tuple(like.shape), like.device
        check_tensor(
            function, "token_weights", token_weights, shape=shape, dtypes=FLOAT_DTYPES, device=device
        )
    if denominator is None:
        return
    if reduction in ("none", "sum"):
        raise ValueError(
            f"{function}: denominator= with reduction={reduction!r}, which divides by nothing. Leave it "
            "out, or use a "
            "mean."
        )
    if not isinstance(denominator, Tensor):
        check_number(function, "denominator", denominator, above=0.0)
        return
    check_tensor(function, "denominator", denominator, shape=(), dtypes=(*FLOAT_DTYPES, *INTEGER_DTYPES))
    if can_look(denominator) and not bool(denominator > 0):
        raise ValueError(f"{function}: denominator={denominator.item()}; wanted a number above 0.")
