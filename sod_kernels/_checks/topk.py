"""Checks of what a top-k teacher says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels._checks.values import FLOAT_DTYPES, INTEGER_DTYPES, can_look, check_tensor

# What rounding, also that of bfloat16, may add to the mass of a list.
MOST_MASS = 1.02


def check_teacher_list(function: str, teacher_log_probs: Any, teacher_ids: Any, **student: Tensor) -> None:
    """Check shapes, dtypes and devices of the teacher's lists.

    Args:
        function: Name for the message.
        teacher_log_probs: (N, K) or (B, T, K) floating.
        teacher_ids: Same shape, integer.
        **student: Logits or hidden states, by their name, for the leading shape and the device.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape or device.
    """
    ((name, like),) = student.items()
    leading, device = tuple(like.shape[:-1]), like.device
    check_tensor(function, "teacher_log_probs", teacher_log_probs, dtypes=FLOAT_DTYPES, device=device)
    shape = tuple(teacher_log_probs.shape)
    if shape[:-1] != leading or len(shape) != len(leading) + 1 or shape[-1] == 0:
        wanted = ", ".join(str(size) for size in leading)
        raise ValueError(
            f"{function}: teacher_log_probs has shape {shape}; wanted ({wanted}, K) with K of at least 1, "
            f"the leading shape of {name} and one entry per listed id."
        )
    check_tensor(function, "teacher_ids", teacher_ids, shape=shape, dtypes=INTEGER_DTYPES, device=device)


def check_teacher_ids(function: str, teacher_ids: Tensor, vocab_size: int) -> None:
    """Refuse listed ids beyond the vocabulary.

    Args:
        function: Name for the message.
        teacher_ids: (..., K) int64, negative where nothing is read.
        vocab_size: Number of valid columns.

    Raises:
        ValueError: If an id is too large; on other devices than the CPU by a device-side assertion.
    """
    if not can_look(teacher_ids):
        torch._assert_async((teacher_ids < vocab_size).all(), f"{function}: teacher_ids out of range")
    elif teacher_ids.numel() and int(teacher_ids.max()) >= vocab_size:
        where = tuple((teacher_ids >= vocab_size).nonzero()[0].tolist())
        raise ValueError(
            f"{function}: teacher_ids holds {teacher_ids[where].item()} at {list(where)}; wanted ids up to "
            f"{vocab_size - 1}, the student's columns, or negative ones for absent. Make tokens that the "
            "student lacks absent."
        )


def check_teacher_mass(function: str, log_probs: Tensor, mass: Tensor) -> None:
    """Refuse lists that are no log-probabilities; looked at on the CPU only.

    Args:
        function: Name for the message.
        log_probs: (..., K) float64, -inf where nothing is read.
        mass: (...) float64, what each token's add up to.

    Raises:
        ValueError: If one is NaN, or a token's add up to clearly more than 1.
    """
    if not can_look(mass) or bool((mass <= MOST_MASS).all()):
        return
    is_odd = log_probs.isnan()
    if bool(is_odd.any()):
        where = tuple(is_odd.nonzero()[0].tolist())
        raise ValueError(
            f"{function}: teacher_log_probs holds nan at {list(where)}; wanted log-probabilities. Give an "
            "entry without one a negative id."
        )
    where = tuple((mass > MOST_MASS).nonzero()[0].tolist())
    raise ValueError(
        f"{function}: teacher_log_probs at {list(where)} add up to a probability of "
        f"{mass[where].item():.4g}; wanted at most 1. Give log-probabilities over the whole vocabulary, "
        "not logits."
    )


def check_sampled_are_listed(
    function: str, sampled_ids: Tensor, is_listed: Tensor, is_active: Tensor
) -> None:
    """Refuse sampled tokens that the teacher did not score, where its log-probability is needed.

    Args:
        function: Name for the message.
        sampled_ids: (...) integer.
        is_listed: (...) bool, whether the teacher's list has the token.
        is_active: (...) bool, whether the token is in a step.

    Raises:
        ValueError: If one is missing; on other devices than the CPU by a device-side assertion.
    """
    is_odd = is_active & ~is_listed
    if not can_look(is_odd):
        torch._assert_async(~is_odd.any(), f"{function}: sampled token not in teacher_ids")
    elif bool(is_odd.any()):
        where = tuple(is_odd.nonzero()[0].tolist())
        raise ValueError(
            f"{function}: step_divergence='abs_log_ratio' needs the teacher's log-probability of the sampled "
            f"token, and teacher_ids at {list(where)} lacks id {sampled_ids[where].item()}. Append it to the "
            "list, as inference servers do when they score a prompt, or use step_divergence='kl'."
        )
