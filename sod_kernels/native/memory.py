"""Uninitialised tensors; large ones on the CPU live in pages that are kept between uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sod_kernels.native import loader

# From here on a CPU tensor gets pages that are kept between uses; smaller ones come from the heap anyway.
_KEPT_FROM_BYTES = 8 << 20


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate an uninitialised, contiguous tensor, if possible of pages that were touched before.

    Args:
        shape: Sizes.
        dtype: Any.
        device: Any; kept pages are for large CPU tensors, where the native library is there.

    Returns:
        The tensor. Its memory goes to the next large one when it dies.
    """
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    is_large = device.type == "cpu" and num_bytes >= _KEPT_FROM_BYTES
    if not is_large or loader.unavailable_reason("cpu") is not None:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(loader.load("cpu").Pages(num_bytes), dtype=dtype).view(shape)


def empty_like(tensor: Tensor) -> Tensor:
    """Allocate an uninitialised, contiguous tensor of another's shape, dtype and device; see `empty`."""
    return empty(tensor.shape, tensor.dtype, tensor.device)
