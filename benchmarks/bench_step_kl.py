"""`step_kl` from logits beside its peers: `benchmarks.run` narrowed to that op.

python -m benchmarks.bench_step_kl [options of benchmarks.run]
"""

from __future__ import annotations

import sys

from benchmarks.run import main

if __name__ == "__main__":
    sys.exit(main(["--ops", "step_kl", *sys.argv[1:]]))
