"""`python -m sod`: the command line."""

from __future__ import annotations

from sod.cli import main

main()
