"""Finds, before a run, what would otherwise be found at update 37."""

from sod.doctor.findings import Finding, Level
from sod.doctor.run import diagnose, examine_folder, examine_machine, examine_run

__all__ = ["Finding", "Level", "diagnose", "examine_folder", "examine_machine", "examine_run"]
