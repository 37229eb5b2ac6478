"""The rollout benchmark compares before it times, and counts what it says it counts."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import bench_rollout
from benchmarks.bench_rollout import Shape, generate_per_turn, lockstep, main, make_model, measure, table

SHAPE = Shape(profile="tiny", rows=3, turns=3, prompt=12, observation=6, turn=10, mean_turn=5)


def test_both_produce_the_same_conversations():
    model = make_model(SHAPE)
    ours, peer = lockstep(model, SHAPE), generate_per_turn(model, SHAPE)
    assert ours.rows == peer.rows
    assert ours.num_turns == peer.num_turns == [3, 3, 3]
    # Turns end at stop tokens and at the limit, and rows are not copies of each other.
    assert 9 < ours.num_sampled < 90
    assert len(set(map(tuple, ours.rows))) == 3


def test_a_row_says_what_was_measured():
    row = measure(SHAPE, 1)
    assert row["sampled_tokens"] == lockstep(make_model(SHAPE), SHAPE).num_sampled
    assert row["ratio"] == pytest.approx(row["generate_per_turn_s"] / row["lockstep_s"])
    assert row["lockstep_tokens_per_s"] == pytest.approx(row["sampled_tokens"] / row["lockstep_s"])
    assert f"{row['ratio']:.2f}" in table([row])


def test_other_tokens_are_not_timed(monkeypatch):
    def shorter(model, shape):
        talk = lockstep(model, shape)
        talk.rows[1].pop()
        return talk

    monkeypatch.setattr(bench_rollout, "generate_per_turn", shorter)
    with pytest.raises(ValueError, match=r"rows \[1\] differ between the two"):
        measure(SHAPE, 1)


def test_the_record_is_json(tmp_path, monkeypatch, capsys):
    arguments = ["--profiles", "tiny", "--rows", "1", "--turns", "1", "--repeats", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "--output", str(tmp_path / "r.json")])
    main()
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["threads"] == 1
    assert [row["rows"] for row in record["rows"]] == [1]
    assert "ratio" in capsys.readouterr().out
