"""`sod demo --quick` as a user runs it: every phase, every file, and a table that agrees with them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sod.cli import app
from sod.metrics import read_rows
from sod.rollout.store import read_trajectories
from sod.sandbox import sandbox_problem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.sandbox,
    pytest.mark.skipif(sandbox_problem() is not None, reason=f"no sandbox here: {sandbox_problem()}"),
]

METHODS = {"opd": "OPD", "sod": "SOD", "control": "control (SFT)"}


def _demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [
        sys.executable,
        "-c",
        "from sod.cli import main; main()",
        "demo",
        "--quick",
        "--threads",
        "1",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = _demo("--output", str(folder), "--seed", "3")
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def _table(folder: Path) -> dict[str, list[str]]:
    lines = (folder / "summary.md").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert all(len(row) == len(rows[0]) for row in rows)
    return {row[0]: row[1:] for row in rows[2:]}


def test_every_phase_left_its_run_folder(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    for name in ("teacher", "student", *METHODS):
        run = folder / name
        for file in ("config.resolved.toml", "env.json", "metrics.jsonl", "steps.jsonl"):
            assert (run / file).stat().st_size > 0, f"{name}/{file}"
        assert list(run.glob("checkpoints/*/model.safetensors")), name
        assert len(read_trajectories(folder / "answers" / f"{name}.jsonl.gz")) == 16
    for method in ("opd", "sod"):
        assert len(list((folder / method / "trajectories").glob("*.jsonl.gz"))) == 2
    for plot in ("success", "steps_opd", "steps_sod"):
        assert (folder / "plots" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")


def test_table_agrees_with_the_answers_and_the_metrics(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    table = _table(folder)
    names = {"teacher": "teacher", "student": "cold student", **METHODS}
    assert set(table) == set(names.values())
    for name, title in names.items():
        answers = read_trajectories(folder / "answers" / f"{name}.jsonl.gz")
        success = sum(answer.is_success for answer in answers) / len(answers)
        errors = sum(answer.num_errors for answer in answers) / len(answers)
        cells = table[title]
        assert cells[0].startswith(f"{100 * success:.1f} ± ")
        assert float(cells[2]) == pytest.approx(errors, abs=0.006)
        updates = [row for row in read_rows(folder / name / "metrics.jsonl") if row["kind"] == "update"]
        assert int(cells[4]) == len(updates)
    for method in ("opd", "sod"):
        rounds = [row for row in read_rows(folder / method / "metrics.jsonl") if row["kind"] == "round"]
        assert float(table[METHODS[method]][3].rstrip("%")) == pytest.approx(
            100 * rounds[-1]["rollout/success_mean"], abs=0.06
        )


def test_methods_were_given_the_same_work(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    counts = {}
    for method in METHODS:
        rows = read_rows(folder / method / "metrics.jsonl")
        updates = [row for row in rows if row["kind"] == "update"]
        rounds = [row for row in rows if row["kind"] == "round"]
        counts[method] = (len(updates), [row["rollout/trajectories"] for row in rounds])
    assert len(set(map(str, counts.values()))) == 1
    first = {method: (folder / method / "config.resolved.toml").read_text("utf-8") for method in METHODS}
    starts = {re.search(r'\[student\]\nmodel = "(.*?)"', text).group(1) for text in first.values()}
    assert len(starts) == 1


def test_step_table_is_that_of_the_metrics(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    text = (folder / "summary.md").read_text(encoding="utf-8")
    rounds = [row for row in read_rows(folder / "sod" / "metrics.jsonl") if row["kind"] == "round"]
    for turn in (0, 1):
        first = (rounds[0]["step/divergence_by_turn"][turn], rounds[0]["step/weight_by_turn"][turn])
        assert f"| {turn + 1} | {first[0]:.3f} | {first[1]:.2f} |" in text


def test_weights_are_one_for_opd_and_not_for_sod(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    weights = {
        method: {row["weight"] for row in read_rows(folder / method / "steps.jsonl")}
        for method in ("opd", "sod")
    }
    assert weights["opd"] == {1.0}
    assert len(weights["sod"]) > 10
    assert max(weights["sod"]) <= 1.2 + 1e-6


def test_summary_says_what_the_answers_say(finished: tuple[Path, str]) -> None:
    folder, shown = finished
    kept = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    by_name = {reading["name"]: reading["success"] for reading in kept["readings"]}
    best = max(METHODS.values(), key=lambda title: by_name[title])
    assert kept["verdict"][0].startswith("Best after training: ")
    named = kept["verdict"][0].removeprefix("Best after training: ").split(",")[0]
    assert by_name[named] == by_name[best]
    for sentence in kept["verdict"]:
        assert sentence in shown


def _refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["demo", "--quick", *arguments])
    assert done.exit_code == 2
    return done.stderr


def test_an_earlier_demo_is_not_overwritten_unasked(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = (folder / "summary.json").read_bytes()
    message = _refused("--output", str(folder))
    assert "holds an earlier demo; add --overwrite to delete it, or give another folder" in message
    assert (folder / "summary.json").read_bytes() == before


def test_foreign_files_are_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    assert "holds files that no demo wrote" in _refused("--output", str(tmp_path), "--overwrite")
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "years of work"


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", encoding="utf-8")
    assert "is a file; give a folder that is new or empty" in _refused("--output", str(tmp_path / "run"))


@pytest.mark.parametrize("methods", ["opd,ppo", ","])
def test_unknown_methods_are_refused(tmp_path: Path, methods: str) -> None:
    message = _refused("--output", str(tmp_path / "run"), "--methods", methods)
    assert "choose at least one of opd, sod, control" in message
    assert not (tmp_path / "run").exists()
