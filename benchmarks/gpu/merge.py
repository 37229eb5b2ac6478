"""Puts several runs on one device together: `python -m benchmarks.gpu.merge FOLDER ... --output FOLDER`.

Of every item the newest row that is "ok" is kept, else the newest; parts that only one run has are copied.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.plan import PARTS
from benchmarks.gpu.sheet import Sheet, merge, read_sheet


def merge_folders(folders: Sequence[Path], output: Path) -> list[Sheet]:
    """Merge part by part.

    Args:
        folders: Of runs, oldest first.
        output: Takes the merged files.

    Returns:
        What was written.

    Raises:
        ValueError: If a file is no sheet, or the runs were on several devices.
    """
    merged = []
    for part in PARTS:
        paths = [folder / f"{part}.json" for folder in folders]
        sheets = [read_sheet(path) for path in paths if path.exists()]
        if sheets:
            merged.append(merge(sheets, output / f"{part}.json"))
    devices = {str(sheet.content["device"]) for sheet in merged}
    if len(devices) > 1:
        raise ValueError(f"merge: wanted runs on one device, got {', '.join(sorted(devices))}.")
    for sheet in merged:
        sheet.write()
    return merged


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the folders, write the merged files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.merge", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="of runs, oldest first")
    parser.add_argument("--output", type=Path, required=True, help="takes the merged files")
    options = parser.parse_args(arguments)
    try:
        merged = merge_folders(options.folders, options.output)
    except ValueError as error:
        parser.error(str(error))
    if not merged:
        parser.error("no folder has a file of a part.")
    for sheet in merged:
        print(f"{sheet.content['part']}: {sheet.status}, {len(sheet.rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
