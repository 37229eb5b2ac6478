"""What breaks under a run: each fault is found, or survived, and nothing made up is ever trained on."""

from __future__ import annotations

import math
import os
import resource
import threading
import time
from contextlib import contextmanager
from itertools import count

import faulty_toolbox
import pytest
import torch
from training_runs import SimulatedCrashError, StopAt, assert_same_run, crash, terminate, trainer_of

from sod.chat import ChatRenderer
from sod.errors import CheckpointError, DataError, RolloutError, TrainingError
from sod.loop.signals import StopRequested
from sod.parsing import ParsedTurn
from sod.rollout.store import read_trajectories
from sod.sandbox import LocalSandbox
from sod.types import ToolCall, ToolOutcome

pytestmark = pytest.mark.timeout(300)

ONE_ROUND = ("trainer.rounds=1", "trainer.epochs=1", "evaluation.every=0")


def with_tool(name):
    return f'environment.tools=["faulty_toolbox:{name}"]'


def outcomes(folder):
    stored = read_trajectories(folder / "trajectories" / "round_0000.jsonl.gz")
    return [result.outcome for one in stored for turn in one.turns for result in turn.results]


@pytest.fixture(autouse=True)
def _fresh_faults(monkeypatch):
    monkeypatch.setattr(faulty_toolbox, "CALLS", count())
    monkeypatch.setattr(faulty_toolbox, "RELEASE", threading.Event())
    monkeypatch.setattr(faulty_toolbox, "HANGS_AT", {1, 3, 5, 7, 9})
    monkeypatch.setattr(faulty_toolbox, "FLAKY", {"num_failures": 0})
    yield
    faulty_toolbox.RELEASE.set()


@pytest.fixture
def every_turn_calls(monkeypatch):
    """The tiny model hardly writes a call that can be read: whatever it samples is read as one."""

    def parse(renderer, sampled_ids):
        arguments = {"a": sum(sampled_ids) % 10, "b": len(sampled_ids) % 10}
        return ParsedTurn(text="", content="", calls=(ToolCall(name="add", arguments=arguments),))

    monkeypatch.setattr(ChatRenderer, "parse", parse)


@pytest.mark.usefixtures("every_turn_calls")
def test_tools_that_hang_are_answered_for_and_the_run_goes_on(arithmetic):
    started = time.monotonic()
    toml = arithmetic.toml("hung_tool")
    result = trainer_of(toml, *ONE_ROUND, with_tool("hanging"), "rollout.tool_timeout_s=0.2").train()
    seen = set(outcomes(result.folder))
    assert ToolOutcome.TIMEOUT in seen
    assert ToolOutcome.OK in seen
    assert result.metrics["update/tokens"] > 0
    assert time.monotonic() - started < 60


@pytest.mark.usefixtures("every_turn_calls")
def test_sigterm_under_a_hung_tool_stops_at_the_deadline_and_resumes(arithmetic):
    toml = arithmetic.toml("term_in_tool")
    options = (*ONE_ROUND, with_tool("hanging"), "rollout.tool_timeout_s=0.3")
    faulty_toolbox.HANGS_AT.update(range(10))
    faulty_toolbox.AT_FIRST_HANG.append(terminate)
    trainer = trainer_of(toml, *options)
    with pytest.raises(StopRequested, match="SIGTERM"):
        trainer.train()
    assert trainer.state.update == 0
    faulty_toolbox.HANGS_AT.clear()
    assert trainer_of(toml, *options).train(resume=True).metrics["round"] == 0


@pytest.mark.usefixtures("every_turn_calls")
def test_a_tool_that_is_down_for_a_while_costs_attempts_and_nothing_else(arithmetic):
    toml = arithmetic.toml("flaky_tool")
    faulty_toolbox.FLAKY["num_failures"] = 5
    result = trainer_of(toml, *ONE_ROUND, with_tool("flaky")).train()
    assert next(faulty_toolbox.CALLS) > 5
    assert ToolOutcome.UNAVAILABLE not in outcomes(result.folder)
    assert len(read_trajectories(result.folder / "trajectories" / "round_0000.jsonl.gz")) == 16


@pytest.mark.usefixtures("every_turn_calls")
def test_a_tool_that_stays_down_stops_the_run_before_any_update(arithmetic, metric_rows):
    toml = arithmetic.toml("dead_tool")
    faulty_toolbox.FLAKY["num_failures"] = 10**9
    trainer = trainer_of(toml, *ONE_ROUND, with_tool("flaky"))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(RolloutError, match=r"stayed unavailable .* 'add: the adding service is down'"):
        trainer.train()
    assert metric_rows(arithmetic.folder / "dead_tool" / "metrics.jsonl") == []
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


@pytest.mark.sandbox
@pytest.mark.usefixtures("every_turn_calls")
def test_a_sandbox_whose_worker_is_killed_again_and_again_loses_no_call(arithmetic, monkeypatch):
    with LocalSandbox(num_workers=1) as sandbox:
        monkeypatch.setattr(faulty_toolbox, "SANDBOXES", [sandbox])
        # One thread: what is killed is idle, and the call that finds it dead is made once more.
        options = (*ONE_ROUND, with_tool("in_sandbox"), "rollout.num_tool_threads=1")
        result = trainer_of(arithmetic.toml("dead_sandbox"), *options).train()
    seen = outcomes(result.folder)
    assert seen.count(ToolOutcome.OK) > 3
    assert not {ToolOutcome.KILLED, ToolOutcome.UNAVAILABLE} & set(seen)


@pytest.mark.parametrize("model", ["teacher", "reference policy"])
def test_a_model_of_nan_is_named_in_the_update_that_meets_it(arithmetic, metric_rows, model):
    is_teacher = model == "teacher"
    # Every step is far, so that the reference takes part in each.
    far = 'name = "stm"\nanchor = "constant"\nconstant = 1e-9\nepsilon = 1e-9'
    algorithm = {} if is_teacher else {"algorithm": far}
    toml = arithmetic.toml(f"nan_{model.split()[0]}", **algorithm)
    trainer = trainer_of(toml, "evaluation.every=0")
    frozen = trainer.parts.teacher if is_teacher else trainer._reference
    with torch.no_grad():
        frozen.model.model.norm.weight[0] = math.nan
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    wanted = rf"the {model} scores trajectory \d+ of the round, turn \d, token \d+ of the turn .* not numbers"
    with pytest.raises(TrainingError, match=wanted):
        trainer.train()
    assert trainer.state.update == 0
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


@contextmanager
def file_size_limit():
    """Lift, at the end, the limit on the size of a file that a test sets in between."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("what", "moment", "num_bytes", "error", "message"),
    [
        ("trajectories", ("rollout", 3), 10, DataError, r"round_0000\.jsonl\.gz cannot be written"),
        ("metrics", ("updates", 3), 10, CheckpointError, r"(metrics|steps)\.jsonl cannot be written"),
        ("checkpoint", ("updates", 5), 60_000, CheckpointError, "before it are whole"),
    ],
)
def test_a_full_disk_stops_the_run_which_resumes_to_the_same(
    arithmetic, unbroken, metric_rows, what, moment, num_bytes, error, message
):
    toml = arithmetic.toml(f"full_{what}")
    with file_size_limit() as limit, pytest.raises(error, match=message):
        trainer_of(toml, display=StopAt(*moment, lambda: limit(num_bytes))).train()
    assert_same_run(trainer_of(toml).train(resume=True), unbroken, metric_rows)


def test_a_truncated_checkpoint_is_told_and_the_one_before_is_taken(
    arithmetic, unbroken, metric_rows, capsys
):
    toml = arithmetic.toml("truncated")
    with pytest.raises(SimulatedCrashError):
        trainer_of(toml, display=StopAt("updates", 9, crash)).train()
    folder = arithmetic.folder / "truncated" / "checkpoints"
    latest = (folder / "latest").read_text().strip()
    file = folder / latest / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)

    result = trainer_of(toml).train(resume=True)
    told = capsys.readouterr().err
    assert "warning: damaged checkpoints were set aside, the last whole one taken" in told
    assert f"{latest}: model.safetensors has" in told
    assert (folder / f"damaged-{latest}" / "model.safetensors").exists()
    assert_same_run(result, unbroken, metric_rows)
