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
    function: str, widths: dict[str, int], vocab_size: Any, num_shards: int, *, unit: str = "columns"
) -> int:
    """Check that this rank's shards are of one width, and how many columns are valid over all ranks.

    Args:
        function: Name for the message.
        widths: Argument name to its share of the vocabulary, the student's first.
        vocab_size: Valid columns of the whole vocabulary, None for all.
        num_shards: Number of ranks R.
        unit: What the vocabulary is counted in, for the message.

    Returns:
        Valid columns of the whole vocabulary.

    Raises:
        TypeError: If `vocab_size` is no integer.
        ValueError: For unequal widths or too large a vocabulary.
    """
    first, width = next(iter(widths.items()))
    for name, other in widths.items():
        if other != width:
            raise ValueError(
                f"{function}: {first} has {width} {unit} and {name} {other} of the same shard; wanted equal "
                "widths. Shard both vocabularies alike, padded to one size, and give vocab_size=."
            )
    total = width * num_shards
    if vocab_size is None:
        return total
    check_count(function, "vocab_size", vocab_size, at_least=1)
    if vocab_size > total:
        raise ValueError(
            f"{function}: vocab_size={vocab_size}; wanted at most {total}, the {unit} of all {num_shards} "
            "shards."
        )
    return int(vocab_size)


def check_ranks_agree(
    function: str, student_logits: Tensor, group: dist.ProcessGroup, *, got: str = "student_logits has shape"
) -> None:
    """Refuse shards whose shapes differ between ranks; on the CPU only, by a small exchange.

    Args:
        function: Name for the message.
        student_logits: (..., V / R); only the shape is looked at.
        group: All ranks.
        got: How the message begins.

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
                f"{function}: {got} {tuple(first)} on rank 0 of process_group and "
                f"{tuple(odd)} on rank {rank}; wanted the same rows and equal shards of the vocabulary. Pad "
                "the vocabulary to a multiple of the number of ranks and give vocab_size=."
            )
