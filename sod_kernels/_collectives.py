"""What the ranks of a process group exchange; groups come by name, since a custom op takes no others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def _resolve(group_name: str) -> dist.ProcessGroup:
    # As torch's own collectives do it.
    registry: Any = dist.distributed_c10d
    group: dist.ProcessGroup = registry._resolve_process_group(group_name)
    return group


def gather(tensor: Tensor, group_name: str) -> Tensor:
    """Stack the tensors of all ranks in front, in the order of the ranks.

    Args:
        tensor: Of the same shape and dtype on every rank.
        group_name: Of the group.

    Returns:
        (R, ...), the same on every rank.
    """
    group = _resolve(group_name)
    parts = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.stack(parts)


def add_up(tensor: Tensor, group_name: str) -> None:
    """Put the sum over all ranks in the place of each rank's tensor.

    Args:
        tensor: Contiguous, of the same shape and dtype on every rank; changed in place.
        group_name: Of the group.
    """
    dist.all_reduce(tensor, group=_resolve(group_name))
