"""Checks of vocabulary-parallel logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from sod_kernels._checks.values import can_look, check_count


def check_group(function: str, group: Any) -> None:
    """Refuse anything but a process group that this process belongs to.

    Args:
        function: Name for the message.
        group: The value to check.

    Raises:
        TypeError: If it is something else.
        ValueError: If this process is not in it, or torch.distributed is missing or not initialised.
    """
    if not dist.is_available():
        raise ValueError(
            f"{function}: process_group= with a torch that was built without torch.distributed. Leave it out."
        )
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"{function}: process_group is a group that this process is not in; wanted one that it is in. "
            f"Call {function} on the group's members only."
        )
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{function}: process_group is {type(group).__name__}; wanted a torch.distributed.ProcessGroup."
        )
    if not dist.is_initialized():
        raise ValueError(
            f"{function}: process_group is of a torch.distributed that is not initialised, or no longer. "
            "Call torch.distributed.init_process_group and make the group anew."
        )


def check_shard_widths(
    function: str, student_logits: Tensor, others: dict[str, Tensor], vocab_size: Any, num_shards: int
) -> int:
    """Check that this rank's shards are of one width, and how many columns are valid over all ranks.

    Args:
        function: Name for the message.
        student_logits: (..., V / R), checked by itself.
        others: Argument name to logits, likewise.
        vocab_size: Valid columns of the whole vocabulary, None for all.
        num_shards: Number of ranks R.

    Returns:
        Valid columns of the whole vocabulary.

    Raises:
        TypeError: If `vocab_size` is no integer.
        ValueError: For unequal widths or too large a vocabulary.
    """
    width = student_logits.shape[-1]
    for name, logits in others.items():
        if logits.shape[-1] != width:
            raise ValueError(
                f"{function}: student_logits has {width} columns and {name} {logits.shape[-1]} of the same "
                "shard; wanted equal widths. Shard both vocabularies alike, padded to one size, and give "
                "vocab_size=."
            )
    total = width * num_shards
    if vocab_size is None:
        return total
    check_count(function, "vocab_size", vocab_size, at_least=1)
    if vocab_size > total:
        raise ValueError(
            f"{function}: vocab_size={vocab_size}; wanted at most {total}, the columns of all {num_shards} "
            "shards."
        )
    return int(vocab_size)


def check_ranks_agree(function: str, student_logits: Tensor, group: dist.ProcessGroup) -> None:
    """Refuse shards whose shapes differ between ranks; on the CPU only, by a small exchange.

    Args:
        function: Name for the message.
        student_logits: (..., V / R).
        group: All ranks.

    Raises:
        ValueError: On every rank, if one holds another shape.
    """
    if not can_look(student_logits):
        return
    # Padded on the left with -1 where the logits are packed.
    shape = torch.tensor(([-1, *student_logits.shape])[-3:])
    shapes = [torch.empty_like(shape) for _ in range(group.size())]
    dist.all_gather(shapes, shape, group=group)
    for rank, other in enumerate(shapes):
        if not torch.equal(other, shapes[0]):
            first, odd = ([size for size in each.tolist() if size >= 0] for each in (shapes[0], other))
            raise ValueError(
                f"{function}: student_logits has shape {tuple(first)} on rank 0 of process_group and "
                f"{tuple(odd)} on rank {rank}; wanted the same rows and equal shards of the vocabulary. Pad "
                "the vocabulary to a multiple of the number of ranks and give vocab_size=."
            )
