"""Every raise for bad input of the step weightings."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sod_kernels._checks.values import (
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    can_look,
    check_count,
    check_number,
    check_tensor,
)


def check_sod_options(function: str, delta: Any, epsilon: Any) -> None:
    """Check the options of the SOD weights.

    Args:
        function: Name for the message.
        delta: At least 0; infinity is fine.
        epsilon: Above 0.

    Raises:
        TypeError: For a wrong type.
        ValueError: For a number out of bounds.
    """
    if delta != math.inf:
        check_number(function, "delta", delta, at_least=0.0)
    check_number(function, "epsilon", epsilon, above=0.0)


def check_tdur_options(function: str, min_turns: Any, min_divergence: Any, mean_preserving: Any) -> None:
    """Check the options of the T-DUR weights.

    Args:
        function: Name for the message.
        min_turns: Integer of at least 1.
        min_divergence: At least 0.
        mean_preserving: Bool.

    Raises:
        TypeError: For a wrong type.
        ValueError: For a number out of bounds.
    """
    check_count(function, "min_turns", min_turns, at_least=1)
    check_number(function, "min_divergence", min_divergence, at_least=0.0)
    if not isinstance(mean_preserving, bool):
        raise TypeError(
            f"{function}: mean_preserving is {type(mean_preserving).__name__}; wanted True or False."
        )


def check_steps(
    function: str,
    step_divergence: Any,
    step_trajectory: Any,
    *,
    step_tokens: Any = None,
    step_uncertainty: Any = None,
) -> None:
    """Check the per-step tensors of a weighting; those that are None are left out.

    Args:
        function: Name for the message.
        step_divergence: (S,) floating, not negative.
        step_trajectory: (S,) integer.
        step_tokens: (S,) integer or floating.
        step_uncertainty: (S,) of the dtype of `step_divergence`.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or a negative divergence.
    """
    check_tensor(function, "step_divergence", step_divergence, dtypes=FLOAT_DTYPES)
    if step_divergence.dim() != 1:
        raise ValueError(
            f"{function}: step_divergence has shape {tuple(step_divergence.shape)}; wanted (S,)."
        )
    shape, device = tuple(step_divergence.shape), step_divergence.device
    others = (
        ("step_uncertainty", step_uncertainty, (step_divergence.dtype,)),
        ("step_tokens", step_tokens, (*INTEGER_DTYPES, *FLOAT_DTYPES)),
        ("step_trajectory", step_trajectory, INTEGER_DTYPES),
    )
    for argument, got, dtypes in others:
        if got is not None:
            check_tensor(function, argument, got, shape=shape, dtypes=dtypes, device=device)
    if can_look(step_divergence) and bool((step_divergence < 0).any()):
        least = step_divergence[step_divergence < 0].min().item()
        raise ValueError(
            f"{function}: step_divergence holds {least:g}; wanted at least 0. Use a KL or a mean absolute "
            "log-ratio."
        )


def check_weighting(function: str, weighting: Any, *, may_be_tensor: bool) -> None:
    """Refuse a weighting that is neither None, nor callable, nor (where allowed) a tensor.

    Args:
        function: Name for the message.
        weighting: The value to check.
        may_be_tensor: Whether a tensor will do.

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(weighting, Tensor) and not may_be_tensor:
        raise TypeError(
            f"{function}: weighting is a tensor, which fits one batch only. Pass it to the function that the "
            "module calls."
        )
    if weighting is None or isinstance(weighting, Tensor):
        return
    if isinstance(weighting, type) or not callable(weighting):
        got = f"the class {weighting.__name__}" if isinstance(weighting, type) else type(weighting).__name__
        wanted = "None, SodWeighting(), TurnWeighting(), a tensor (S,) or a function of StepStatistics"
        raise TypeError(f"{function}: weighting is {got}; wanted {wanted}.")


def check_step_weights(function: str, weights: Any, like: Tensor) -> None:
    """Refuse step weights that are not one floating number per step.

    Args:
        function: Name for the message.
        weights: What was given, or what a weighting returned.
        like: (S,) tensor on the wanted device.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape or device.
    """
    shape, device = tuple(like.shape), like.device
    check_tensor(function, "weighting's result", weights, shape=shape, dtypes=FLOAT_DTYPES, device=device)
