"""Trajectories on disk: exact, all or nothing, and clear about damage."""

from __future__ import annotations

import gzip
import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sod.errors import DataError
from sod.rollout.store import read_trajectories, write_trajectories
from sod.types import ToolCall, ToolOutcome, ToolResult, Trajectory, Turn
from tests.sod.strategies import trajectories

EXAMPLE = Trajectory(
    task_id="t",
    turns=(
        Turn(
            context_ids=(1, 2),
            sampled_ids=(3,),
            sampled_log_probs=(-0.1234567890123456789,),
            calls=(ToolCall(name="python", arguments={"code": "print('ä')\n"}),),
            results=(ToolResult(name="python", outcome=ToolOutcome.TIMEOUT, text="\ud800 cut", seconds=0.1),),
        ),
    ),
    reward=1 / 3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
@given(st.lists(trajectories(), max_size=3))
def test_round_trip_is_exact(tmp_path, written):
    path = tmp_path / "a.jsonl.gz"
    write_trajectories(path, written)
    read = read_trajectories(path)
    assert read == written
    assert repr(read) == repr(written)


def test_equal_trajectories_give_equal_bytes_and_nothing_else_is_left(tmp_path):
    for name in ("a", "b"):
        write_trajectories(tmp_path / f"{name}.jsonl.gz", [EXAMPLE] * 2)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl.gz", "b.jsonl.gz"]
    assert read_trajectories(tmp_path / "a.jsonl.gz") == [EXAMPLE] * 2


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    write_trajectories(path, [EXAMPLE])

    def failing():
        yield EXAMPLE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_trajectories(path, failing())
    assert read_trajectories(path) == [EXAMPLE]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("value", [(1, 2), float("nan"), {1: 2}, b"bytes", {3}])
def test_what_would_come_back_changed_is_refused(tmp_path, value):
    turn = replace(EXAMPLE.turns[0], calls=(ToolCall(name="f", arguments={"x": value}),))
    with pytest.raises(DataError, match=r"trajectory 1 \(task 't'\) (cannot be written|would be read back)"):
        write_trajectories(tmp_path / "a.jsonl.gz", [EXAMPLE, replace(EXAMPLE, turns=(turn,))])


def rewrite(path: Path, change) -> None:
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(change(lines))))


def _without(key):
    def change(lines):
        values = json.loads(lines[2])
        del values[key]
        return [*lines[:2], json.dumps(values).encode() + b"\n"]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:2], b"{broken\n"], "line 3 of .* is no trajectory: JSONDecodeError"),
        (_without("turns"), "line 3 of .* is no trajectory: KeyError: 'turns'"),
        (_without("task_id"), "line 3 of .* is no trajectory: TypeError: .*task_id"),
        (lambda lines: lines[1:], "no trajectory file: its first line"),
        (lambda lines: [], "no trajectory file: its first line"),
        (
            lambda lines: [lines[0].replace(b"1", b"2"), *lines[1:]],
            "schema version 2, this release reads version 1",
        ),
    ],
)
def test_damaged_rows_are_named(tmp_path, change, message):
    path = tmp_path / "a.jsonl.gz"
    write_trajectories(path, [EXAMPLE] * 2)
    rewrite(path, change)
    with pytest.raises(DataError, match=message):
        read_trajectories(path)


def test_files_cut_off_missing_or_misnamed(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    write_trajectories(path, [EXAMPLE] * 2)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="damaged or cut off after line"):
        read_trajectories(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match="damaged or cut off after line 0"):
        read_trajectories(path)
    with pytest.raises(DataError, match=r"b\.jsonl\.gz does not exist"):
        read_trajectories(tmp_path / "b.jsonl.gz")
    with pytest.raises(DataError, match=r"must end with \.jsonl\.gz, got .*a\.json'"):
        write_trajectories(tmp_path / "a.json", [])


def test_a_full_disk_is_told_and_leaves_the_file_before(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    write_trajectories(path, [EXAMPLE])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be written: .*\. Free disk space"):
            write_trajectories(path, [EXAMPLE] * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl.gz"]
