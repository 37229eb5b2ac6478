"""Step statistics and SOD weights of a whole rollout batch, against a per-token Python loop with `.item()`.

    python benchmarks/bench_step_weights.py [--output results.json]

1024 trajectories of 20,480 tokens (64 prompts x 16 rollouts, the paper's response length) are 21 million
visits of the loop, so it is timed on a few rows and scaled by the number of rows; the record says so. Both
must agree to 1e-6 on those rows before anything is timed.

Least traffic of our side: each token's value (4 bytes) and step id (8 bytes) read once.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sod_kernels import sod_weights, step_means, steps_from_mask

NUM_ROWS, NUM_TOKENS = 1024, 20_480
AGREEMENT = 1e-6
BYTES_PER_TOKEN = 4 + 8


def make_batch(num_rows: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Draw log-ratios (B, T) and a response mask with 3 to 7 generations per row and observations between."""
    generator = torch.Generator().manual_seed(0)
    gaps = torch.randn(num_rows, num_tokens, generator=generator).abs_()
    steps = torch.randint(3, 8, (num_rows, 1), generator=generator)
    length = num_tokens // steps
    # The last fifth of each stretch is the tool's observation.
    mask = torch.arange(num_tokens) % length < length * 4 // 5
    return gaps, mask


def loop(
    gaps: Tensor, mask: Tensor, delta: float = 0.2, epsilon: float = 1e-6
) -> tuple[list[float], list[float]]:
    """Find the runs, average them and weigh them, one `.item()` per token read."""
    means: list[float] = []
    weights: list[float] = []
    for row in range(mask.shape[0]):
        total, count, product, first = 0.0, 0, 1.0, len(means)
        for token in range(mask.shape[1] + 1):
            is_inside = token < mask.shape[1] and bool(mask[row, token].item())
            if is_inside:
                total += gaps[row, token].item()
                count += 1
            elif count:
                means.append(total / count)
                if len(means) - 1 > first:
                    product *= (means[-2] + epsilon) / (means[-1] + epsilon)
                weights.append(min(product, 1.0 + delta))
                total, count = 0.0, 0
    return means, weights


def ours(gaps: Tensor, ids: Tensor, trajectory: Tensor) -> tuple[Tensor, Tensor]:
    """Means per step, then weights."""
    means = step_means(gaps, ids, trajectory.shape[0])
    return means, sod_weights(means, trajectory)


def layout(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Step ids (B, T) and trajectory (S,) of a mask."""
    ids = steps_from_mask(mask)
    is_first = torch.nn.functional.pad(mask[:, :-1], (1, 0)).logical_not() & mask
    return ids, is_first.nonzero()[:, 0]


def check(gaps: Tensor, mask: Tensor) -> int:
    """Raise unless both sides agree; returns the number of steps compared."""
    wanted = [torch.tensor(values, dtype=torch.float64) for values in loop(gaps, mask)]
    got = ours(gaps, *layout(mask))
    for name, mine, theirs in zip(("means", "weights"), got, wanted, strict=True):
        worst = (mine - theirs).abs().max().item()
        if mine.shape != theirs.shape or worst > AGREEMENT:
            raise SystemExit(f"{name} disagree with the loop by {worst:.3g}; nothing was timed.")
    return wanted[0].numel()


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one to warm up."""
    function()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return seconds


def row(op: str, seconds: list[float], num_tokens: int, **more: object) -> dict[str, object]:
    """One record."""
    ordered = sorted(seconds)
    median = statistics.median(ordered)
    return {
        "op": op,
        "median_s": median,
        "p20_s": ordered[len(ordered) // 5],
        "p80_s": ordered[-1 - len(ordered) // 5],
        "gb_per_s": num_tokens * BYTES_PER_TOKEN / median / 1e9,
        **more,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="trajectories in the batch")
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS, help="tokens of each trajectory")
    parser.add_argument("--loop-rows", type=int, default=4, help="trajectories that the loop is timed on")
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of our side")
    parser.add_argument("--output", type=Path, help="file for the record; it is printed either way")
    options = parser.parse_args()
    gaps, mask = make_batch(options.rows, options.tokens)
    few = slice(0, min(options.loop_rows, options.rows))
    compared = check(gaps[few], mask[few])
    ids, trajectory = layout(mask)
    total = gaps.numel()
    fast = timed(lambda: ours(gaps, ids, trajectory), options.repeats)
    # A read of the same two tensors is the limit that this machine sets today.
    read = timed(lambda: (gaps.sum(), ids.sum()), options.repeats)
    # Twice is enough for a run of seconds, and the quicker one is the fairer.
    slow = min(timed(lambda: loop(gaps[few], mask[few]), 2)) * options.rows / gaps[few].shape[0]
    record = {
        "shape": [options.rows, options.tokens],
        "num_steps": trajectory.shape[0],
        "steps_compared": compared,
        "agreement": AGREEMENT,
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "rows": [
            row("step_means + sod_weights", fast, total, dtype="float32"),
            row("steps_from_mask", timed(lambda: steps_from_mask(mask), 3), total, dtype="bool"),
            row("read both tensors (limit)", read, total, dtype="float32"),
            row("python loop", [slow], total, extrapolated_from_rows=gaps[few].shape[0]),
        ],
        "times_faster_than_loop": slow / statistics.median(fast),
        "percent_of_limit": 100 * statistics.median(read) / statistics.median(fast),
    }
    text = json.dumps(record, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
