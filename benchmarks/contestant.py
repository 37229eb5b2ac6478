"""What takes part: a name, a way to bind it to a case's tensors, and what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.shapes import Case

Loss = Callable[[], Tensor]
OURS, TORCH, PEER = "ours", "torch", "peer"


def no_extra(case: Case) -> int:
    """Claim no memory of the size of the logits."""
    del case
    return 0


def float_logits(copies: int) -> Callable[[Case], int]:
    """Claim that many (N, V) float32 tensors at once, which decides whether a case is too large to try."""
    return lambda case: copies * case.rows * case.pair.vocab * 4


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to compute an op.

    Attributes:
        name: What the table calls it.
        kind: "ours", "torch" or "peer".
        prepare: Binds a case's inputs, of the type that its op takes, and gives the function that computes
            the mean loss over all rows; raises `SkippedError` where it cannot run.
        divergence: What it computes; the truth it is held to is of the same.
        is_weighted: Whether it weighs the tokens by SOD's step weights.
        is_compiled: Whether its first call compiles, which is neither timed nor counted as memory.
        needed_bytes: Rough memory that it takes beyond its inputs.
    """

    name: str
    kind: str
    prepare: Callable[[Any], Loss]
    divergence: str = "reverse_kl"
    is_weighted: bool = False
    is_compiled: bool = False
    needed_bytes: Callable[[Case], int] = no_extra
