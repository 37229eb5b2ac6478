"""The driver of `make gpu`: limits, reasons, and what a part that is killed or breaks leaves behind."""

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import __main__ as driver
from benchmarks.gpu import worker
from benchmarks.gpu.bench_cases import EVERYBODY, planned
from benchmarks.gpu.build_part import AHEAD_OF_TIME
from benchmarks.gpu.job import ROOT, Job, probe, why_no_gpu
from benchmarks.gpu.model import expected_seconds
from benchmarks.gpu.plan import EARLY, EARLY_S, PARTS, TOTAL_S
from benchmarks.gpu.sheet import Sheet, read_sheet
from benchmarks.outcomes import SkippedError
from sod_kernels.triton import aot

ORIGIN = {"device": "Test GPU", "kind": "cuda", "capability": [9, 0], "time": "2026-01-02T03:04:05Z"}
# Stands for a part: what its name says. It starts a process of its own, whose number it leaves.
SCRIPT = """
import json, subprocess, sys, time
from pathlib import Path
from benchmarks.gpu.sheet import Sheet
part, settings = sys.argv[1], json.loads(sys.argv[2])
folder = Path(settings["folder"])
sheet = Sheet.begin(folder, part, json.loads((folder / "origin.json").read_text()), resume=settings["resume"])
with (folder / "started.txt").open("a") as file:
    file.write(part + "\\n")
sheet.add([{"item": "first", "status": "ok", "reason": None}])
if part == "bench":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (folder / "child.txt").write_text(str(child.pid))
    time.sleep(60)
if part == "limits":
    sys.exit(7)
sheet.finish("ok", None, 0.1)
"""


@pytest.fixture
def fake_parts(monkeypatch):
    def command(module, part, settings):
        assert module == "benchmarks.gpu.worker"
        return [sys.executable, "-c", SCRIPT, part, settings]

    monkeypatch.setattr(driver, "module_command", command)
    monkeypatch.setattr(driver, "probe", lambda peers: dict(ORIGIN))


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    # A zombie that nobody has waited for is no process at work.
    return state != "Z"


def test_a_killed_and_a_broken_part_keep_their_rows_and_the_rest_goes_on(fake_parts, tmp_path, capsys):
    arguments = ["--parts", "build", "limits", "bench", "--limit", "4", "--output", str(tmp_path)]
    assert driver.main(arguments) == 1
    sheets = {name: read_sheet(tmp_path / f"{name}.json") for name in ("build", "limits", "bench")}
    assert {name: sheet.status for name, sheet in sheets.items()} == {
        "build": "ok",
        "limits": "failed",
        "bench": "killed",
    }
    assert sheets["limits"].content["reason"] == "Its process ended with 7; what it had is kept."
    assert sheets["bench"].content["reason"] == "It ran past its limit of 4 s; what it had is kept."
    assert all(sheet.rows for sheet in sheets.values())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json"] * 3 + [".txt"] * 2
    deadline = time.monotonic() + 10
    while is_alive(int((tmp_path / "child.txt").read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int((tmp_path / "child.txt").read_text()))
    printed = capsys.readouterr().out
    assert "| build | expected s |" not in printed.split("# build")[1]
    assert "| bench | killed | 4 | 175 |" in printed

    # Going on runs again what did not end well, and that alone.
    (tmp_path / "started.txt").unlink()
    assert driver.main([*arguments[:3], "--resume", "--output", str(tmp_path)]) == 1
    assert (tmp_path / "started.txt").read_text().split() == ["limits"]


def test_a_part_that_never_wrote_is_failed(monkeypatch, tmp_path):
    monkeypatch.setattr(driver, "module_command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setattr(driver, "probe", lambda peers: dict(ORIGIN))
    assert driver.main(["--parts", "build", "--output", str(tmp_path)]) == 1
    assert read_sheet(tmp_path / "build.json").content["reason"].startswith("Its process ended with 3")


def test_parts_run_in_the_order_of_the_plan():
    assert driver.parse_arguments(["--parts", "e2e", "build"]).parts == ["build", "e2e"]
    assert driver.parse_arguments([]).parts == list(PARTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit takes seconds above 0, got 0.0"),
        (["--resume"], "--resume goes on in a folder; name it with --output"),
        (["--parts", "tune"], "invalid choice: 'tune'"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        driver.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_the_plan_fits_and_the_model_of_the_clock_fits_the_plan():
    assert sum(part.limit_s for part in PARTS.values()) <= TOTAL_S == 25 * 60
    assert list(PARTS)[: len(EARLY)] == list(EARLY)
    assert sum(PARTS[name].limit_s for name in EARLY) <= EARLY_S == 8 * 60
    for name, part in PARTS.items():
        assert 0 < expected_seconds(name) <= part.limit_s, name
    # A command on a lent machine lasts ten minutes at most, and the driver needs some of it.
    assert max(part.limit_s for part in PARTS.values()) <= 580


def test_the_document_has_the_limits_of_the_plan():
    text = (ROOT / "docs" / "gpu.md").read_text()
    shown = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.M))
    assert shown == {name: str(part.limit_s) for name, part in PARTS.items()}


def test_the_shapes_of_the_targets_come_first_with_everybody():
    cases = planned(is_dry=False)
    assert [each.contestants for each in cases[:3]] == [EVERYBODY] * 3
    assert {each.case.op for each in cases[:3]} == {"step_kl", "linear_step_kl", "topk_step_kl"}
    assert {each.case.rows for each in cases if each.is_target} == {4096, 8192, 16_384}
    assert len({each.case for each in cases}) == len(cases)
    assert not any(each.is_target for each in cases[9:])


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ({"kind": "cpu"}, "torch finds no CUDA device."),
        (
            {"kind": "cuda", "device": "Old", "capability": [7, 5]},
            "Old has compute capability 7.5; wanted 8.0 or newer.",
        ),
        ({"kind": "cuda", "device": "New", "capability": [9, 0]}, None),
    ],
)
def test_a_machine_that_cannot_run_it_says_why(origin, reason):
    assert why_no_gpu(origin) == reason


def test_a_machine_without_git_and_with_peers_in_a_folder_is_described(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "trl-9.8.7.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 9.8.7\n")
    origin = probe(tmp_path)
    assert (origin["git_sha"], origin["git_is_clean"]) == ("unknown", False)
    assert origin["versions"]["trl"] == "9.8.7"


def test_without_a_gpu_a_part_is_skipped_with_the_reason(tmp_path):
    (tmp_path / "origin.json").write_text(json.dumps({**ORIGIN, "kind": "cpu"}))
    settings = {"is_dry": False, "resume": False, "limit_s": 1.0, "peers": tmp_path}
    assert worker.work("limits", tmp_path, **settings) == "skipped"
    assert read_sheet(tmp_path / "limits.json").content["reason"] == "torch finds no CUDA device."


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (SkippedError("No such tool."), "skipped", "No such tool."),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory\nmore"),
            "skipped",
            "out of memory",
        ),
        (ValueError("a shape"), "failed", "ValueError: a shape"),
    ],
)
def test_what_breaks_is_its_own_row(error, status, reason, tmp_path):
    job = make_job(tmp_path)
    with job.row("one"):
        raise error
    with job.row("two") as row:
        row["gb_per_s"] = 1.0
    first, second = read_sheet(job.sheet.path).rows
    assert (first["status"], second["status"]) == (status, "ok")
    assert reason in first["reason"]
    assert "more" not in first["reason"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(SkippedError("No loop."), "skipped", "No loop."), (OSError("disk"), "failed", "OSError: disk")],
)
def test_a_part_that_breaks_says_why(error, status, reason, monkeypatch, tmp_path):
    def run(job):
        raise error

    monkeypatch.setitem(sys.modules, "benchmarks.gpu.limits_part", SimpleNamespace(run=run))
    (tmp_path / "origin.json").write_text(json.dumps(ORIGIN))
    settings = {"is_dry": False, "resume": False, "limit_s": 1.0, "peers": tmp_path}
    assert worker.work("limits", tmp_path, **settings) == status
    assert read_sheet(tmp_path / "limits.json").content["reason"] == reason


def make_job(folder, *, is_dry=False, seconds=60.0):
    sheet = Sheet.begin(folder, "limits", ORIGIN, resume=False)
    return Job(sheet=sheet, is_dry=is_dry, deadline=time.monotonic() + seconds, peers=folder)


def test_ahead_of_time_architectures_are_those_of_the_table():
    assert [f"sm_{each}" for each in AHEAD_OF_TIME] == [
        each for each in aot.TARGETS if each.startswith("sm_")
    ]
