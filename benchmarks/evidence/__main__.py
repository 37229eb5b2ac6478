"""`python -m benchmarks.evidence`: what is here is not found by processes that are started anew."""

from __future__ import annotations

import sys

from benchmarks.evidence.command_line import main

if __name__ == "__main__":
    sys.exit(main())
