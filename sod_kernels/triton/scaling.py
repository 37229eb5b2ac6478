"""Scales gradients by a number on the device, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels.triton.config import SCALE_BLOCK, SCALE_TURNS, SCALE_WARPS
from sod_kernels.triton.launch import launch


def scale_(values: Tensor, factor: Tensor) -> None:
    """Multiply in place. A factor of 1, which most losses get, costs no walk over the values.

    Args:
        values: Any shape, contiguous, float64, float32, bfloat16 or float16.
        factor: Scalar on the same device, float32 (float64 for float64).
    """
    from sod_kernels.triton.scale_kernel import scale_kernel

    if values.numel() == 0:
        return
    programs = -(-values.numel() // (SCALE_BLOCK * SCALE_TURNS))
    with torch.cuda.device_of(values):
        launch(
            scale_kernel,
            programs,
            *(values, factor, values.numel()),
            num_warps=SCALE_WARPS,
            BLOCK=SCALE_BLOCK,
            TURNS=SCALE_TURNS,
        )
