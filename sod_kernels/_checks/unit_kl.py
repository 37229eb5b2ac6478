"""Checks of the arguments of `unit_kl` and `linear_unit_kl`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels._checks.hidden import check_head
from sod_kernels._checks.values import (
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    can_look,
    check_choice,
    check_count,
    check_ids,
    check_number,
    check_tensor,
)

SCORES = ("log_prob", "logit")
UNIT_FILTERS = ("one_to_one",)


def check_side(function: str, side: str, logits: Any, ids: Any, vocab_size: Any, like: Tensor | None) -> int:
    """Check the logits and labels of one side.

    Args:
        function: Name for the message.
        side: "student" or "teacher".
        logits: (rows, width) floating.
        ids: (rows,) integer.
        vocab_size: Valid columns, or None for all.
        like: The student's logits, for dtype and device; None for the student itself.

    Returns:
        Number of valid columns.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or size.
    """
    dtypes = FLOAT_DTYPES if like is None else (like.dtype,)
    device = None if like is None else like.device
    check_tensor(function, f"{side}_logits", logits, dtypes=dtypes, device=device)
    if logits.dim() != 2:
        raise ValueError(
            f"{function}: {side}_logits has shape {tuple(logits.shape)}; wanted (rows, vocabulary), packed: "
            "the sides have different numbers of tokens."
        )
    _check_ids_of_rows(function, side, ids, logits)
    return _vocab_size(function, side, vocab_size, logits.shape[1], f"the columns of {side}_logits")


def check_head_side(
    function: str,
    side: str,
    head: tuple[Any, Any, Any, Any, Any],
    ids: Any,
    vocab_size: Any,
    *,
    like: Tensor | None = None,
) -> int:
    """Check the output head and labels of one side.

    Args:
        function: Name for the message.
        side: "student" or "teacher".
        head: Hidden states (rows, H), weight (V, H), bias (V,) or None, logit scale, and softcap or None.
        ids: (rows,) integer.
        vocab_size: Valid rows of the weight, or None for all.
        like: The student's hidden states, for the device; None for the student itself.

    Returns:
        Number of valid rows of the weight.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or size.
    """
    hidden = head[0]
    device = None if like is None else like.device
    check_tensor(function, f"{side}_hidden", hidden, dtypes=FLOAT_DTYPES, device=device)
    if hidden.dim() != 2:
        raise ValueError(
            f"{function}: {side}_hidden has shape {tuple(hidden.shape)}; wanted (rows, H), packed: the sides "
            "have different numbers of tokens."
        )
    check_head(function, side, *head, like=hidden)
    _check_ids_of_rows(function, side, ids, hidden)
    return _vocab_size(function, side, vocab_size, head[1].shape[0], f"the rows of {side}_weight")


def check_may_plan_units(function: str, ids: Tensor) -> None:
    """Refuse to wait for the device where that is impossible.

    Args:
        function: Name for the message.
        ids: Wherever the batch is.

    Raises:
        ValueError: Under CUDA-graph capture.
    """
    if ids.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"{function}: called while a CUDA graph is captured, but its chunks are planned on the host, "
            "which waits for the units. Call it outside of the graph."
        )


def _check_ids_of_rows(function: str, side: str, ids: Any, rows: Tensor) -> None:
    check_tensor(
        function, f"{side}_ids", ids, shape=(rows.shape[0],), dtypes=INTEGER_DTYPES, device=rows.device
    )


def _vocab_size(function: str, side: str, given: Any, width: int, what: str) -> int:
    if given is None:
        return width
    check_count(function, f"{side}_vocab_size", given, at_least=1)
    if given > width:
        raise ValueError(f"{function}: {side}_vocab_size={given}; wanted at most {width}, {what}.")
    return int(given)


def check_map(
    function: str, vocab_map: Any, wanted: type[Any], vocab_sizes: tuple[int, int], device: torch.device
) -> None:
    """Check that a map's columns are columns of the logits.

    Args:
        function: Name for the message.
        vocab_map: The map.
        wanted: Its class.
        vocab_sizes: Valid columns of student and teacher.
        device: Where the logits are.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is on another device or a column is out of range.
    """
    if not isinstance(vocab_map, wanted):
        raise TypeError(f"{function}: vocab_map is {type(vocab_map).__name__}; wanted a {wanted.__name__}.")
    pairs = (("student", vocab_map.student_columns), ("teacher", vocab_map.teacher_columns))
    for (side, columns), size in zip(pairs, vocab_sizes, strict=True):
        check_tensor(function, f"vocab_map.{side}_columns", columns, device=device)
        check_ids(function, f"vocab_map.{side}_columns", columns, low=0, high=size)


def check_units(
    function: str, units: Any, wanted: type[Any], num_rows: tuple[int, int], device: torch.device
) -> None:
    """Check that units lie within the rows.

    Args:
        function: Name for the message.
        units: The units, whose spans ascend.
        wanted: Their class.
        num_rows: Rows of student and teacher.
        device: Where the logits are.

    Raises:
        TypeError: If they are something else.
        ValueError: If they are on another device or reach beyond the last row.
    """
    if not isinstance(units, wanted):
        raise TypeError(f"{function}: units is {type(units).__name__}; wanted {wanted.__name__}.")
    pairs = (("student", units.student_spans), ("teacher", units.teacher_spans))
    for (side, spans), rows in zip(pairs, num_rows, strict=True):
        check_tensor(function, f"units.{side}_spans", spans, device=device)
        if not can_look(spans):
            torch._assert_async((spans <= rows).all(), f"{function}: units.{side}_spans out of range")
        elif spans.numel() and int(spans[-1, 1]) > rows:
            raise ValueError(
                f"{function}: units.{side}_spans ends at row {int(spans[-1, 1])}; {side}_ids has {rows} "
                f"entries. Units count the {side}'s labels, of which row i scores id i."
            )


def check_unit_options(
    function: str,
    *,
    score: Any,
    unit_filter: Any,
    topk: Any,
    num_shared: int | None,
    mask_first_token: Any,
    min_teacher_mass: Any,
) -> None:
    """Check the options that only `unit_kl` has.

    Args:
        function: Name for the message.
        score: One of `SCORES`.
        unit_filter: One of `UNIT_FILTERS`, or None.
        topk: From 1 to the number of shared columns, or None.
        num_shared: Number of shared columns; None where it is not known yet.
        mask_first_token: Bool.
        min_teacher_mass: Above 0 and at most 1, or None.

    Raises:
        TypeError: For a wrong type.
        ValueError: For a number out of bounds or an option that would do nothing.
    """
    check_choice(function, "score", score, SCORES)
    if unit_filter is not None:
        check_choice(function, "unit_filter", unit_filter, UNIT_FILTERS)
    if topk is not None:
        check_count(function, "topk", topk, at_least=1)
        if num_shared is not None and topk > num_shared:
            raise ValueError(
                f"{function}: topk={topk}; wanted at most {num_shared}, the shared columns, or None for all."
            )
    if not isinstance(mask_first_token, bool):
        raise TypeError(
            f"{function}: mask_first_token is {type(mask_first_token).__name__}; wanted True or False."
        )
    if mask_first_token and unit_filter is not None:
        raise ValueError(
            f"{function}: mask_first_token=True with unit_filter={unit_filter!r}, which leaves no spans. "
            "Leave one of them out."
        )
    if min_teacher_mass is not None:
        check_number(function, "min_teacher_mass", min_teacher_mass, above=0.0)
        if min_teacher_mass > 1.0:
            raise ValueError(
                f"{function}: min_teacher_mass={min_teacher_mass!r}; wanted a probability, at most 1."
            )
