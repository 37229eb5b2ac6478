"""Every random draw of a run comes from one root seed, so that a resumed run repeats an unbroken one."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Derive the seed of one purpose at one place of the run.

    Args:
        seed: Root seed of the run.
        purpose: What the draw is for, such as "rollout".
        indices: Where in the run: round, epoch and the like.

    Returns:
        A seed below 2**63; equal inputs give equal seeds on every machine.
    """
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_generators(seed: int, purpose: str, *indices: int) -> None:
    """Seed the global generators of Python and torch for one purpose at one place of the run.

    What draws from them (dropout, a tool) repeats after a resume, so their state is in no checkpoint.
    """
    derived = derive_seed(seed, purpose, *indices)
    random.seed(derived)
    torch.manual_seed(derived)


def permutation(size: int, seed: int) -> list[int]:
    """Draw a seeded order of `range(size)`."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


def take_from(items: Sequence[T], cursor: int, count: int, *, seed: int) -> list[T]:
    """Take the next items of an endless stream in which every pass has its own seeded order.

    Args:
        items: The data set, not empty.
        cursor: Items taken so far.
        count: Items to take.
        seed: Root seed of the run.

    Returns:
        `count` items; a pass over the data gives each of them exactly once.
    """
    taken: list[T] = []
    order: list[int] = []
    order_of = -1
    for position in range(cursor, cursor + count):
        epoch, index = divmod(position, len(items))
        if epoch != order_of:
            order, order_of = permutation(len(items), derive_seed(seed, "order", epoch)), epoch
        taken.append(items[order[index]])
    return taken
