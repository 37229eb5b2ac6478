"""Finds, before a run, what would otherwise be found at update 37."""

from sod.doctor.findings import Finding, Level
from sod.doctor.run import diagnose, examine_machine

__all__ = ["Finding", "Level", "diagnose", "examine_machine"]
