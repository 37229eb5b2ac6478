"""One function, forward and backward, for tools that watch a process: `python -m benchmarks.gpu.workload`.

small OP BACKEND DTYPE DEVICE     an awkward batch of `sod_kernels.testing.family`, for the checkers
full  OP BACKEND ROWS DEVICE      a batch of the benchmarks at Qwen's size, for the profiler
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch


def small(op: str, backend: str, dtype: str, device: str) -> float:
    """Run a batch that is awkward in every way that is known to break kernels; the loss."""
    from sod_kernels.testing.family import make_family_case

    case = make_family_case(op, dtype=getattr(torch, dtype), device=device)
    return float(case.loss_and_gradients(backend)[0])


def full(op: str, backend: str, rows: str, device: str) -> float:
    """Run a batch of the benchmarks twice, so that the second finds everything compiled; the loss."""
    from benchmarks.inputs import make_inputs
    from benchmarks.measure import bind
    from benchmarks.ours import our_contestants
    from benchmarks.shapes import PAIRS, QWEN, Case

    pair = PAIRS[QWEN] if device == "cuda" else PAIRS["small"]
    inputs = make_inputs(Case(op=op, pair=pair, rows=int(rows), dtype="bfloat16"), device)
    (contestant,) = (each for each in our_contestants(op) if each.name == f"{op} {backend}")
    run = bind(contestant.prepare(inputs), inputs.leaves, has_backward=True)
    run()
    return float(run()[0])


def main(arguments: Sequence[str]) -> int:
    """Run what the command line names, and print the loss."""
    kinds = {"small": small, "full": full}
    if len(arguments) != 5 or arguments[0] not in kinds:
        print(__doc__, file=sys.stderr)
        return 2
    loss = kinds[arguments[0]](*arguments[1:])
    if arguments[-1] == "cuda":
        torch.cuda.synchronize()
    print(f"loss {loss:.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
