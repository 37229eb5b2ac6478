"""Every raise for bad input."""

from __future__ import annotations

from torch import Tensor


def check_mask(function: str, mask: Tensor) -> None: ...
def check_step_means(values: Tensor, step_ids: Tensor, num_steps: int) -> None: ...
