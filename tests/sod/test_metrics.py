"""JSON lines: append, cut back, and refuse what was changed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sod.errors import CheckpointError
from sod.metrics import JsonLines, read_rows


def test_rows_come_back_exactly(tmp_path):
    path = tmp_path / "m.jsonl"
    value = 0.1 + 0.2
    with JsonLines(path) as lines:
        lines.write({"a": value, "b": [1.0, "x"]})
        size = lines.flush()
    assert path.stat().st_size == size
    assert read_rows(path) == [{"a": value, "b": [1.0, "x"]}]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "m.jsonl"
    with JsonLines(path) as lines:
        lines.write({"a": math.nan, "b": math.inf})
    assert read_rows(path) == [{"a": None, "b": None}]


def test_a_resumed_file_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "m.jsonl"
    with JsonLines(path) as lines:
        lines.write({"row": 0})
        offset = lines.flush()
        lines.write({"row": 1})
    with JsonLines(path, offset=offset) as lines:
        lines.write({"row": 2})
        lines.sync()
    assert [row["row"] for row in read_rows(path)] == [0, 2]


def test_a_file_that_lost_rows_is_refused(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"has 3 bytes, but the checkpoint was made when it had 50"):
        JsonLines(path, offset=50)


def test_a_write_that_fails_says_what_to_do():
    wanted = r"/dev/full cannot be written: .*Free disk space"
    lines = JsonLines(Path("/dev/full"))
    lines.write({"a": 1})
    with pytest.raises(CheckpointError, match=wanted):
        lines.flush()
    with pytest.raises(CheckpointError, match=wanted):
        lines.__exit__(None)
