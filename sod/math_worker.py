"""The helper process of `sod.math_check`: requests as JSON lines on stdin, answers on stdout."""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

_MEMORY_BYTES = 4 << 30


def are_equal(answer: str, candidate: str, timeout_s: int) -> bool:
    """Compare two expressions by math-verify; texts where it cannot read the ground truth.

    Args:
        answer: Ground truth, without a box.
        candidate: What the model put into its box.
        timeout_s: Seconds for each parse and for the comparison.

    Returns:
        Whether they are equal.
    """
    from math_verify import parse, verify

    wanted: Any = parse(f"\\boxed{{{answer}}}", parsing_timeout=timeout_s)
    if not wanted:
        return answer.strip() == candidate.strip()
    found: Any = parse(f"\\boxed{{{candidate}}}", parsing_timeout=timeout_s)
    return bool(verify(wanted, found, timeout_seconds=timeout_s))


def main() -> None:
    """Answer requests until stdin closes."""
    from sod.math_check import CHECK_SECONDS

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    replies = os.fdopen(os.dup(1), "w")
    # Whatever a library prints must not look like a reply.
    os.dup2(2, 1)
    are_equal("1", "1", CHECK_SECONDS)
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            is_equal = are_equal(request["answer"], request["candidate"], CHECK_SECONDS)
        except Exception:
            # Whatever an expression breaks inside the parser, it was not verified.
            is_equal = False
        print(json.dumps(is_equal), file=replies, flush=True)


if __name__ == "__main__":
    main()
