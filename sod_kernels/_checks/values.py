"""Checks of single values: names, numbers, tensors, masks, ids."""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIGNED_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8)
INTEGER_DTYPES = (*SIGNED_DTYPES, torch.uint8)


def can_look(tensor: Tensor) -> bool:
    """Say whether reading the values of a tensor costs no wait and breaks no graph.

    Args:
        tensor: Any tensor.

    Returns:
        True for CPU tensors outside compiled code.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_choice(function: str, argument: str, got: object, choices: tuple[str, ...]) -> None:
    """Refuse a name that is not one of the choices, offering the nearest.

    Args:
        function: Name for the message.
        argument: Name for the message.
        got: The value to check.
        choices: What is allowed.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is no such name.
    """
    if not isinstance(got, str):
        raise TypeError(
            f"{function}: {argument} is {type(got).__name__}; wanted one of {', '.join(choices)}."
        )
    if got not in choices:
        near = difflib.get_close_matches(got, choices, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{function}: {argument}={got!r}; wanted one of {', '.join(choices)}.{hint}")


def check_number(
    function: str, argument: str, got: object, *, above: float | None = None, at_least: float | None = None
) -> float:
    """Refuse anything but a finite Python number inside its bounds.

    Args:
        function: Name for the message.
        argument: Name for the message.
        got: The value to check.
        above: Exclusive lower bound.
        at_least: Inclusive lower bound.

    Returns:
        The number as a float.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite or out of bounds.
    """
    if isinstance(got, bool) or not isinstance(got, int | float):
        raise TypeError(f"{function}: {argument} is {type(got).__name__}; wanted a Python number.")
    bound = (
        f" above {above:g}"
        if above is not None
        else f" of at least {at_least:g}"
        if at_least is not None
        else ""
    )
    is_low = (above is not None and got <= above) or (at_least is not None and got < at_least)
    if not abs(got) < math.inf or is_low:
        raise ValueError(f"{function}: {argument}={got!r}; wanted a finite number{bound}.")
    return float(got)


def check_count(function: str, argument: str, got: object, *, at_least: int) -> None:
    """Refuse anything but an integer of at least some size.

    Args:
        function: Name for the message.
        argument: Name for the message.
        got: The value to check.
        at_least: Inclusive lower bound.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is too small.
    """
    if isinstance(got, bool) or not isinstance(got, int | torch.SymInt):
        raise TypeError(f"{function}: {argument} is {type(got).__name__}; wanted an integer.")
    if got < at_least:
        raise ValueError(f"{function}: {argument}={got}; wanted at least {at_least}.")


def check_tensor(
    function: str,
    argument: str,
    got: Any,
    *,
    shape: tuple[int, ...] | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
    device: torch.device | None = None,
) -> None:
    """Refuse anything but a tensor of the wanted shape, dtype and device.

    Args:
        function: Name for the message.
        argument: Name for the message.
        got: The value to check.
        shape: Exact shape, or None for any.
        dtypes: Allowed dtypes, or None for any.
        device: Wanted device, or None for any.

    Raises:
        TypeError: If it is no tensor or has another dtype.
        ValueError: If shape or device differ.
    """
    if not isinstance(got, Tensor):
        raise TypeError(f"{function}: {argument} is {type(got).__name__}; wanted a tensor.")
    if dtypes is not None and got.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(
            f"{function}: {argument} has dtype {got.dtype}; wanted one of {names}. Convert it first."
        )
    if shape is not None and tuple(got.shape) != shape:
        raise ValueError(f"{function}: {argument} has shape {tuple(got.shape)}; wanted {shape}.")
    if device is not None and got.device != device:
        raise ValueError(f"{function}: {argument} is on {got.device}; wanted {device}. Move it there first.")


def check_mask(function: str, mask: Any) -> None:
    """Refuse a mask that is no tensor of 0 and 1 (values are looked at on the CPU only).

    Args:
        function: Name for the message.
        mask: The value to check.

    Raises:
        TypeError: If it is no tensor of bool, integer or floating dtype.
        ValueError: If it has no dimension or other values.
    """
    check_tensor(function, "response_mask", mask, dtypes=(torch.bool, *INTEGER_DTYPES, *FLOAT_DTYPES))
    if mask.dim() == 0:
        raise ValueError(f"{function}: response_mask has no dimension; wanted (..., T).")
    if mask.dtype != torch.bool and can_look(mask):
        is_odd = (mask != 0) & (mask != 1)
        if bool(is_odd.any()):
            odd = mask[is_odd][0].item()
            raise ValueError(
                f"{function}: response_mask holds {odd}; wanted only 0 and 1. Compare it to 0 first."
            )


def check_ids(
    function: str, argument: str, ids: Tensor, *, low: int, high: int, counted: Tensor | None = None
) -> None:
    """Refuse ids outside [low, high): at once on the CPU, by a device-side assertion elsewhere.

    Args:
        function: Name for the message.
        argument: Name for the message.
        ids: Integer ids.
        low: Smallest id allowed.
        high: First id not allowed.
        counted: Where ids count; elsewhere they may be anything.

    Raises:
        ValueError: If an id is out of range.
    """
    if can_look(ids) and counted is None:
        # One read, no temporary; the place of the fault is looked for only if there is one.
        smallest, largest = ids.aminmax() if ids.numel() else (low, low)
        if int(smallest) >= low and int(largest) < high:
            return
    is_odd = (ids < low) | (ids >= high)
    if counted is not None:
        is_odd = is_odd & counted
    if not can_look(ids):
        torch._assert_async(~is_odd.any(), f"{function}: {argument} out of range")
    elif bool(is_odd.any()):
        where = tuple(is_odd.nonzero()[0].tolist())
        raise ValueError(
            f"{function}: {argument} holds {ids[where].item()} at {list(where)}; "
            f"wanted ids from {low} to {high - 1}."
        )


def check_step_means(values: Any, step_ids: Any, num_steps: Any) -> None:
    """Check the arguments of `step_means`.

    Args:
        values: Floating tensor.
        step_ids: Integer tensor of the same shape and device.
        num_steps: Number of steps.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or id.
    """
    name = "step_means"
    check_tensor(name, "values", values, dtypes=FLOAT_DTYPES)
    check_tensor(
        name, "step_ids", step_ids, shape=tuple(values.shape), dtypes=SIGNED_DTYPES, device=values.device
    )
    check_count(name, "num_steps", num_steps, at_least=0)
    check_ids(name, "step_ids", step_ids, low=-1, high=num_steps)
