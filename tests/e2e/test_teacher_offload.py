"""Whole runs with a teacher that waits in host memory: the run without it, bit for bit."""

from __future__ import annotations

import shutil

import pytest
from training_runs import SimulatedCrashError, StopAt, assert_same_run, crash, terminate, trainer_of

from sod.errors import ConfigError
from sod.loop.display import Display
from sod.loop.signals import StopRequested
from tests.sod.copies import Copies

pytestmark = pytest.mark.timeout(300)

ROWS = 512
"""Of the embedding, which is the head too."""


class Watching(Display):
    """Notes at every moment of a run which copies of weights are held."""

    def __init__(self, copies):
        super().__init__(is_quiet=True)
        self._copies, self.seen = copies, []

    def part(self, name, done, total, metrics=None):
        self.seen.append((name, done, total, tuple(self._copies.alive)))


@pytest.fixture
def copies(monkeypatch):
    """As if the device were not the host: weights are copied, and the copies are watched."""
    made = Copies()
    monkeypatch.setattr("sod.assembly.check_offload", lambda *_: None)
    monkeypatch.setattr("sod.teacher.factory.copies_to", lambda device: made)
    return made


def held(display, name):
    return {shapes for part, _, _, shapes in display.seen if part == name}


def test_the_run_is_the_one_without_and_the_device_is_free_but_for_the_head(
    arithmetic, unbroken, metric_rows, copies
):
    display = Watching(copies)
    trainer = trainer_of(arithmetic.toml("offloaded"), "teacher.offload=true", display=display)
    assert_same_run(trainer.train(), unbroken, metric_rows)
    assert held(display, "rollout") == held(display, "evaluation") == {()}
    ((head,),) = held(display, "updates")
    assert head[0] == ROWS
    assert min(len(shapes) for shapes in held(display, "scoring")) > 10
    # Two minibatches a round, in two epochs.
    assert [each[1:3] for each in display.seen if each[0] == "scoring"] == 3 * [(1, 2), (2, 2)]
    assert copies.alive == []


def test_a_run_that_was_stopped_scores_what_is_left_of_its_round(arithmetic, unbroken, metric_rows, copies):
    toml = arithmetic.toml("offloaded_halves")

    def trainer(display):
        return trainer_of(toml, "teacher.offload=true", display=display)

    with pytest.raises(SimulatedCrashError):
        trainer(StopAt("scoring", 3, crash)).train()
    with pytest.raises(StopRequested):
        trainer(StopAt("updates", 3, terminate)).train(resume=True)
    display = Watching(copies)
    assert_same_run(trainer(display).train(resume=True), unbroken, metric_rows)
    # One update of four was left of the second round.
    assert [each[1:3] for each in display.seen if each[0] == "scoring"] == [(1, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize("start", ["own", "given"])
def test_a_reference_waits_where_its_teacher_does(arithmetic, metric_rows, copies, start):
    sets = ("trainer.rounds=1", "evaluation.every=0")
    sets += (f"reference.model='{arithmetic.teacher}'",) if start == "given" else ()
    algorithm = 'name = "stm"'
    wanted = trainer_of(arithmetic.toml(f"stm_resident_{start}", algorithm=algorithm), *sets).train()
    display = Watching(copies)
    toml = arithmetic.toml(f"stm_offloaded_{start}", algorithm=algorithm)
    result = trainer_of(toml, *sets, "teacher.offload=true", display=display).train()
    assert_same_run(result, wanted, metric_rows)
    (heads,) = held(display, "updates")
    assert [shape[0] for shape in heads] == [ROWS, ROWS]
    assert held(display, "rollout") == {()}


def test_a_run_on_the_cpu_has_nowhere_to_offload_to(arithmetic, tmp_path):
    bare = shutil.copytree(
        arithmetic.student, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")
    )
    with pytest.raises(ConfigError, match=r"\[teacher\] offload = true: this run computes on the CPU"):
        trainer_of(arithmetic.toml("nowhere"), "teacher.offload=true", f"student.model='{bare}'")
