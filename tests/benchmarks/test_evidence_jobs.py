"""Jobs behind locks: done once, in order, resumed after a failure, never mixed up between settings."""

from __future__ import annotations

import fcntl
import json

import pytest

from benchmarks.evidence.grid import GRID_FILE, TEACHERS, Cell, load_grid
from benchmarks.evidence.jobs import Job, is_done, read_result, work_off
from benchmarks.evidence.pausing import PausingDisplay
from benchmarks.evidence.phases import Plan
from benchmarks.evidence.settings import cell_config
from sod.errors import CheckpointError, ConfigError, TrainingError


def jobs_of(done, settings=None):
    def work(name):
        def do(folder):
            assert folder.is_dir()
            done.append(name)
            return {"number": len(done)}

        return do

    needs = {"a": (), "b": ("a",), "c": ("a", "b")}
    return [
        Job(name=name, needs=needs[name], settings=settings or {"size": 1}, work=work(name)) for name in needs
    ]


def test_jobs_are_done_once_and_in_order(tmp_path):
    done, lines = [], []
    assert work_off(tmp_path, jobs_of(done), lines.append) == []
    assert done == ["a", "b", "c"]
    assert work_off(tmp_path, jobs_of(done), lines.append) == []
    assert done == ["a", "b", "c"]
    result = read_result(tmp_path, "c")
    assert result["number"] == 3
    assert result["settings"] == {"size": 1}
    assert result["wall_s"] >= 0
    assert any("c: done in" in line for line in lines)


def test_a_job_that_failed_is_tried_again_and_one_that_is_held_is_left_alone(tmp_path):
    done = []
    broken = Job(name="a", needs=(), settings={"size": 1}, work=lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        work_off(tmp_path, [broken], print)
    assert read_result(tmp_path, "a") is None
    lock = tmp_path / "a" / "job.lock"
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        free = Job(name="d", needs=(), settings={"size": 1}, work=lambda folder: {})
        jobs = [*jobs_of(done), free]

        def say(line):
            # The job that nobody holds was done first; now the other one is let go.
            if "d: done" in line:
                fcntl.flock(handle, fcntl.LOCK_UN)

        assert work_off(tmp_path, jobs, say) == []
    assert done == ["a", "b", "c"]


def test_what_needs_a_job_that_failed_is_left_out_and_the_rest_goes_on(tmp_path):
    def fail(folder):
        raise TrainingError("the gradient was not finite")

    done, lines = [], []
    a, b, c = jobs_of(done)
    free = Job(name="d", needs=(), settings={"size": 1}, work=lambda folder: done.append("d") or {})
    jobs = [a, Job(name="b", needs=b.needs, settings=b.settings, work=fail), c, free]
    assert work_off(tmp_path, jobs, lines.append) == ["b", "c"]
    assert done == ["a", "d"]
    assert any("b: failed: the gradient was not finite" in line for line in lines)


def test_a_result_of_other_settings_is_not_taken(tmp_path):
    work_off(tmp_path, jobs_of([]), print)
    with pytest.raises(CheckpointError, match=r"a was made with other settings \(size\); give another"):
        is_done(tmp_path, jobs_of([], {"size": 2})[0])


def test_a_pause_lasts_as_long_as_its_file(tmp_path, monkeypatch):
    file, naps = tmp_path / "pause", []
    file.touch()

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            file.unlink()

    monkeypatch.setattr("benchmarks.evidence.pausing.time.sleep", nap)
    PausingDisplay(file).part("updates", 1, 2)
    assert len(naps) == 3
    PausingDisplay(None).wait()
    assert len(naps) == 3


def test_every_cell_of_the_grid_file_has_valid_settings(tmp_path):
    names = [name for name in load_grid(("cascade",)).parts if name != "smoke"]
    grid = load_grid(tuple(names))
    cells = grid.cells(tuple(names))
    assert len(cells) == len(set(cells))
    for cell in {(one.regime, one.update, one.method): one for one in cells}.values():
        config = cell_config(
            grid, cell, cold=tmp_path, teacher=tmp_path, train=tmp_path, check=tmp_path, output=tmp_path
        )
        # Equal rollouts and updates for every method.
        assert config.num_updates == 96
        assert getattr(config.environment, "fault_rate", None) in (0.0, 0.25)
        assert (config.teacher is None) == (cell.method in ("sft", "grpo"))


def test_what_a_cell_needs_comes_before_it_and_is_shared():
    grid = load_grid(("baselines", "cascade"))
    jobs = Plan(grid, GRID_FILE.parent, PausingDisplay(None)).jobs(grid.cells(("cascade",), (0, 1)))
    names = [job.name for job in jobs]
    assert len(names) == len(set(names)) == 1 + 2 * (5 + 2 * len(grid.parts["cascade"].methods))
    for job in jobs:
        assert all(names.index(need) < names.index(job.name) for need in job.needs)
    # The first seed is finished before the second is begun.
    assert names.index("seed_0/cells/cascade.big.stm") < names.index("seed_1/tasks")
    control = Cell(seed=0, regime="easy", update="big", method="sft")
    needs = Plan(grid, GRID_FILE.parent, PausingDisplay(None)).jobs([control])[-1].needs
    assert "seed_0/rollouts_easy" in needs
    assert "seed_0/teacher_trained" in needs


@pytest.mark.parametrize(
    ("names", "change", "words"),
    [
        (("cascde",), {}, r"\[grids\] has no 'cascde'; did you mean 'cascade'\?"),
        (("cascade", "smoke"), {}, r"have sizes \['full', 'tiny'\]; name grids of one"),
        (("smoke",), {'methods = ["stm", "sft"]': 'methods = ["std"]'}, r"\[methods\] has no 'std'"),
        (("smoke",), {"num_held_out = 4": "num_heldout = 4"}, "unknown key .*num_heldout"),
        (("smoke",), {'teacher = "naive"': 'teacher = "naif"'}, "teacher = 'naif'; did you mean 'naive'"),
    ],
)
def test_a_grid_file_with_a_mistake_is_refused(tmp_path, names, change, words):
    text = GRID_FILE.read_text()
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_grid(names, path)
    assert set(TEACHERS) == {"naive", "trained"}


def test_results_are_plain_json(tmp_path):
    work_off(tmp_path, jobs_of([]), print)
    assert json.loads((tmp_path / "a" / "result.json").read_text())["number"] == 1
