"""Small shapes under pytest-benchmark: `make bench-pytest`, for watching the effect of one change.

The rows that are kept and compared with peers come from `benchmarks.run`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.contestant import Contestant
from benchmarks.inputs import make_inputs
from benchmarks.ours import our_contestants
from benchmarks.outcomes import SkippedError
from benchmarks.plain import plain_contestants
from benchmarks.shapes import OPS, PAIRS, Case
from benchmarks.truth import TruthOf

ROWS = 512


def _contestants() -> list[tuple[str, Contestant]]:
    return [(op, each) for op in OPS for each in (*our_contestants(op), plain_contestants(op)[0])]


@pytest.mark.parametrize(
    ("op", "contestant"), [pytest.param(*pair, id=f"{pair[0]}-{pair[1].name}") for pair in _contestants()]
)
def test_forward_and_backward(
    op: str, contestant: Contestant, benchmark: Callable[[Callable[[], object]], tuple[Tensor, ...]]
) -> None:
    """Time one contestant on 512 rows of the small pair, after holding it to the truth."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = make_inputs(Case(op=op, pair=PAIRS["small"], rows=ROWS, dtype="float32"), device)
    try:
        loss = contestant.prepare(inputs)
    except SkippedError as reason:
        pytest.skip(str(reason))

    def run() -> tuple[Tensor, tuple[Tensor, ...]]:
        value = loss()
        gradients = torch.autograd.grad(value, inputs.leaves)
        if device == "cuda":
            torch.cuda.synchronize()
        return value, gradients

    errors = TruthOf(inputs).errors(*run(), contestant.divergence, is_weighted=contestant.is_weighted)
    assert errors.loss < 1e-4
    assert errors.gradient is not None
    assert errors.gradient < 1e-4
    benchmark(run)
