"""Measurements against peers: `python -m benchmarks.run`, `python -m benchmarks.compare A.json B.json`."""
