"""Tensors of a batch brought into the order of a plan, and back, on the device of the hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels.linear.plan import Chunk, RowPlan

# A captured copy reads its source again at every replay, so the source must live on.
_CAPTURED: list[Tensor] = []


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting, which CUDA-graph capture can record.

    Args:
        tensor: Anywhere.
        device: Where to.

    Returns:
        The tensor itself if it is there already, else a copy.
    """
    if tensor.device == device:
        return tensor
    if device.type != "cuda" or torch.compiler.is_compiling():
        return tensor.to(device)
    pinned = tensor.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _CAPTURED.append(pinned)
    return pinned.to(device, non_blocking=True)


class PlannedRows:
    """A plan on the device, and the moves between its order and that of the batch.

    Attributes:
        plan: The plan on the host.
        ranks: (M,) rank of each row's step.
        steps: (R,) step id of each rank.
        tokens: (S,) tokens of each step.
    """

    def __init__(self, plan: RowPlan, num_rows: int, device: torch.device) -> None:
        """Bring a plan to the device, in one copy.

        Args:
            plan: The plan.
            num_rows: N, rows of the batch.
            device: Of the hidden states.
        """
        self.plan = plan
        self._total = num_rows
        indices = [plan.ranks, plan.steps, plan.tokens]
        if plan.rows is not None:
            indices.append(plan.rows)
        moved = torch.split(to_device(torch.cat(indices), device), [each.numel() for each in indices])
        self.ranks, self.steps, self.tokens = moved[:3]
        self._rows = moved[3] if plan.rows is not None else None

    def pick(self, tensor: Tensor, chunk: Chunk | None = None) -> Tensor:
        """Take the rows of a chunk, or of the whole plan, in order.

        Args:
            tensor: (N, ...).
            chunk: None for all.

        Returns:
            (C, ...) or (M, ...); a view where the rows are neighbours already.
        """
        begin, end = (0, self.plan.num_rows) if chunk is None else (chunk.begin, chunk.end)
        if self._rows is None:
            return tensor[self.plan.offset + begin : self.plan.offset + end]
        return tensor.index_select(0, self._rows[begin:end])

    def add(self, total: Tensor, values: Tensor, begin: int) -> None:
        """Add rows of the plan to their places in the batch, in place.

        Args:
            total: (N, ...), changed in place.
            values: (C, ...) of rows begin .. begin + C - 1 of the plan.
            begin: First row.
        """
        end = begin + values.shape[0]
        if self._rows is None:
            total[self.plan.offset + begin : self.plan.offset + end].add_(values)
        else:
            # A plan names each row once, so no sum depends on an order.
            total.index_add_(0, self._rows[begin:end], values)

    def put(self, values: Tensor) -> Tensor:
        """Spread values over the batch.

        Args:
            values: (M, ...) in the order of the plan.

        Returns:
            (N, ...), 0 at rows in no step.
        """
        total = values.new_zeros(self._total, *values.shape[1:])
        self.add(total, values, 0)
        return total
