"""How long a call of the Python tool takes: cold, warm, eight at a time, and in a session.

    python benchmarks/bench_sandbox.py [--output results.json]

| row | one sample is |
|---|---|
| cold | a new sandbox of one worker (bubblewrap, interpreter, filters, self-test) and its first call |
| warm | a call of a worker that is there: a fork, its walls, the code, the clean-up |
| eight-way | 40 calls from 8 threads, all of them; 8 workers that are there |
| session | a call of an interpreter that keeps its state |
| session start | the first call of a session whose worker an earlier session left |

Every call computes and prints something new, and its answer is compared before the time counts. The bounds
are those that the project promises for two cores; the exit code is 1 where one is missed, so measure on a
quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sod.sandbox import LocalSandbox, SandboxResult

BOUNDS_S = {"cold": 0.090, "eight-way": 1.0, "session": 0.001}
NUM_CALLS, NUM_THREADS = 40, 8


def right(result: SandboxResult, number: int) -> None:
    """Raise unless the call printed what it was asked to."""
    if result.stdout != f"{number * number}\n":
        raise SystemExit(f"a call answered {result}; nothing counts.")


def sampled(one: Callable[[int], None], count: int) -> list[float]:
    """Seconds of each of `count` samples, after one to warm up."""
    one(0)
    seconds = []
    for number in range(1, count + 1):
        begin = time.perf_counter()
        one(number)
        seconds.append(time.perf_counter() - begin)
    return seconds


def cold_seconds(count: int) -> list[float]:
    """Time to the first result, without the end of the sandbox."""
    LocalSandbox(num_workers=1).close()
    seconds = []
    for number in range(count):
        begin = time.perf_counter()
        sandbox = LocalSandbox(num_workers=1)
        result = sandbox.run(f"{number} * {number}")
        seconds.append(time.perf_counter() - begin)
        sandbox.close()
        right(result, number)
    return seconds


def eight_way(sandbox: LocalSandbox, pool: ThreadPoolExecutor) -> None:
    """Forty calls from eight threads."""
    for number, result in enumerate(pool.map(lambda n: sandbox.run(f"{n} * {n}"), range(NUM_CALLS))):
        right(result, number)


def session_start(sandbox: LocalSandbox, number: int) -> None:
    """A session of one call."""
    with sandbox.session() as session:
        right(session.run(f"{number} * {number}"), number)


def row(name: str, seconds: list[float]) -> dict[str, object]:
    """One record."""
    ordered = sorted(seconds)
    median = statistics.median(ordered)
    bound = BOUNDS_S.get(name)
    return {
        "name": name,
        "median_s": median,
        "p20_s": ordered[len(ordered) // 5],
        "p80_s": ordered[-1 - len(ordered) // 5],
        "p95_s": ordered[-1 - len(ordered) // 20],
        "samples": len(ordered),
        "bound_s": bound,
        "is_within": bound is None or median <= bound,
    }


def measure(num_samples: int) -> list[dict[str, object]]:
    """Measure every row."""
    rows = [row("cold", cold_seconds(num_samples))]
    with LocalSandbox(num_workers=NUM_THREADS) as sandbox, ThreadPoolExecutor(NUM_THREADS) as pool:
        calls = sampled(lambda n: right(sandbox.run(f"{n} * {n}"), n), 10 * num_samples)
        rows.append(row("warm", calls))
        rows.append(row("eight-way", sampled(lambda _: eight_way(sandbox, pool), max(3, num_samples // 4))))
        with sandbox.session() as session:
            kept = sampled(lambda n: right(session.run(f"{n} * {n}"), n), 100 * num_samples)
        rows.append(row("session", kept))
        rows.append(row("session start", sampled(lambda n: session_start(sandbox, n), 2 * num_samples)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20, help="cold starts; the other rows in proportion")
    parser.add_argument("--output", type=Path, help="file for the record; it is printed either way")
    options = parser.parse_args()
    rows = measure(options.samples)
    record = {
        "op": "sandbox",
        "device": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "user": "root" if os.geteuid() == 0 else "ordinary",
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": rows,
    }
    text = json.dumps(record, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)
    return 0 if all(one["is_within"] for one in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
