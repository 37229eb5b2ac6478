"""Asks the compiled CPU library about lists of ids."""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels._checks.values import can_look
from sod_kernels.native import loader


def may_repeat(ids: Tensor) -> bool:
    """Say whether a list may hold an id twice; negative ids are absent.

    Args:
        ids: (..., K) int64.

    Returns:
        False if none does. True if one does, or if nobody can tell: in compiled code, on other devices than
        the CPU, where looking would wait, and without the library, where looking is what it would save.
    """
    if not can_look(ids) or loader.unavailable_reason("cpu") is not None:
        return True
    ids = ids.contiguous()
    found: bool = loader.load("cpu").any_repeats(
        ids=ids.data_ptr(),
        num_lists=ids.shape[:-1].numel(),
        num_ids=ids.shape[-1],
        num_threads=torch.get_num_threads(),
    )
    return found
