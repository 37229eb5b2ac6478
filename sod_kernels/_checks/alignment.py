"""Checks of the arguments of `align_units`."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from sod_kernels._checks.units import check_has_tables
from sod_kernels._checks.values import INTEGER_DTYPES, check_choice, check_ids, check_tensor
from sod_kernels.token_bytes import TokenBytes
from sod_kernels.units import VocabMap

_FUNCTION = "align_units"
_CPU = torch.device("cpu")
ALIGNMENTS = ("minimal", "greedy")
BACKENDS = ("auto", "native", "reference")


def check_options(vocab_map: Any, align: Any, backend: Any) -> tuple[TokenBytes, TokenBytes]:
    """Check the map and the options that are names.

    Args:
        vocab_map: A `VocabMap` with tokenizers.
        align: One of `ALIGNMENTS`.
        backend: One of `BACKENDS`.

    Returns:
        The student's and the teacher's tokens.

    Raises:
        TypeError: For a wrong type.
        ValueError: For an unknown name, or a map of columns alone.
    """
    if not isinstance(vocab_map, VocabMap):
        raise TypeError(f"{_FUNCTION}: vocab_map is {type(vocab_map).__name__}; wanted a VocabMap.")
    check_choice(_FUNCTION, "align", align, ALIGNMENTS)
    check_choice(_FUNCTION, "backend", backend, BACKENDS)
    return check_has_tables(_FUNCTION, vocab_map)


def check_tokens(name: str, ids: Any, num_tokens: int) -> Tensor:
    """Check token ids.

    Args:
        name: Argument, for the message.
        ids: Integer tensor on the CPU, or a sequence of integers.
        num_tokens: Size of the vocabulary.

    Returns:
        (N,) int64, contiguous.

    Raises:
        TypeError: If they are no integers.
        ValueError: For a wrong shape or device, or an id out of range.
    """
    # From a list of a long response this is ten times as quick as torch.tensor.
    tokens = _integers(name, ids if isinstance(ids, Tensor) else _packed(name, ids))
    if tokens.dim() != 1:
        raise ValueError(f"{_FUNCTION}: {name} has shape {tuple(tokens.shape)}; wanted one sequence of ids.")
    check_ids(_FUNCTION, name, tokens, low=0, high=num_tokens)
    return tokens.long().contiguous()


def check_segments(student: Any, teacher: Any, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Check the segments of both sides.

    Args:
        student: (G, 2) of [start, end), or None for one segment.
        teacher: The same.
        sizes: Number of ids of each side.

    Returns:
        (G, 2) int64 of both sides, contiguous.

    Raises:
        TypeError: If they are no integers.
        ValueError: If only one side is given, the numbers of segments differ, or one is out of range, ends
            before it starts or overlaps the one before.
    """
    if (student is None) != (teacher is None):
        missing = "student_segments" if student is None else "teacher_segments"
        raise ValueError(f"{_FUNCTION}: {missing} is missing; wanted segments of both sides, or of neither.")
    if student is None:
        return torch.tensor([[0, sizes[0]]]), torch.tensor([[0, sizes[1]]])
    checked = (
        _check_side("student_segments", student, sizes[0]),
        _check_side("teacher_segments", teacher, sizes[1]),
    )
    if checked[0].shape != checked[1].shape:
        raise ValueError(
            f"{_FUNCTION}: student_segments are {checked[0].shape[0]} and teacher_segments "
            f"{checked[1].shape[0]}; wanted the same turns on both sides."
        )
    return checked


def check_truncated(truncated: Any, num_segments: int) -> Tensor:
    """Check which segments were cut off.

    Args:
        truncated: A bool, or one per segment.
        num_segments: Number of segments G.

    Returns:
        (G,) uint8.

    Raises:
        TypeError: If it is neither bool nor bools.
        ValueError: If there is not one per segment.
    """
    flags = torch.as_tensor(truncated)
    if flags.dtype != torch.bool and flags.numel() > 0:
        raise TypeError(
            f"{_FUNCTION}: truncated holds {flags.dtype}; wanted True or False, or one per segment."
        )
    if flags.dim() == 0:
        flags = flags.expand(num_segments)
    if tuple(flags.shape) != (num_segments,):
        raise ValueError(
            f"{_FUNCTION}: truncated has shape {tuple(flags.shape)}; wanted one per segment, "
            f"({num_segments},)."
        )
    return flags.to(_CPU, torch.uint8).contiguous()


def _check_side(name: str, segments: Any, size: int) -> Tensor:
    spans = _integers(name, segments)
    if spans.numel() == 0:
        return torch.empty(0, 2, dtype=torch.int64)
    if spans.dim() != 2 or spans.shape[1] != 2:
        raise ValueError(
            f"{_FUNCTION}: {name} has shape {tuple(spans.shape)}; wanted (G, 2), start and end of each."
        )
    spans = spans.long().contiguous()
    before = torch.cat([spans.new_zeros(1), spans[:-1, 1]])
    is_odd = (spans[:, 0] < before) | (spans[:, 1] < spans[:, 0]) | (spans[:, 1] > size)
    if bool(is_odd.any()):
        segment = int(is_odd.nonzero()[0])
        start, end = spans[segment].tolist()
        raise ValueError(
            f"{_FUNCTION}: {name}[{segment}] is [{start}, {end}); wanted a range from "
            f"{int(before[segment])}, where the segment before it ends, up to {size}, the number of ids."
        )
    return spans


def _packed(name: str, ids: Any) -> Tensor:
    try:
        numbers = array("q", ids)
    except (TypeError, ValueError, OverflowError) as error:
        raise _no_integers(name, ids) from error
    return torch.frombuffer(numbers, dtype=torch.int64) if numbers else torch.empty(0, dtype=torch.int64)


def _integers(name: str, values: Any) -> Tensor:
    try:
        # Without a first number torch could not tell that they are integers.
        tensor = torch.as_tensor(values) if len(values) else torch.empty(0, dtype=torch.int64)
    except (TypeError, ValueError) as error:
        raise _no_integers(name, values) from error
    check_tensor(_FUNCTION, name, tensor, dtypes=INTEGER_DTYPES, device=_CPU)
    return tensor


def _no_integers(name: str, values: Any) -> TypeError:
    return TypeError(f"{_FUNCTION}: {name} is {type(values).__name__}; wanted integers: a tensor or a list.")
