"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import re
import signal

import pytest
from arithmetic import sft_toml
from typer.testing import CliRunner

from sod import cli, commands
from sod.config_file import load_config
from sod.loop import parts
from sod.loop.display import Display
from sod.rollout.store import read_trajectories, write_trajectories

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def sod(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SOD_TRACEBACK", raising=False)

    def run(*arguments, code=0):
        result = CliRunner().invoke(cli.app, [str(one) for one in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


def test_an_evaluation_that_was_cut_short_goes_on(sod, arithmetic, tmp_path, monkeypatch):
    toml, folder, numbers = arithmetic.toml("parts"), tmp_path / "attempts", tmp_path / "eval.json"
    # Eight tasks, three at a time.
    settings = ["--set", "rollout.max_batch=3", "--attempts", folder, "--output", numbers]
    whole = sod("eval", toml, "--set", "rollout.max_batch=3", "--output", numbers)
    metrics = json.loads(numbers.read_text())
    assert whole.exit_code == 0

    writes = []

    def write_two(path, part):
        if len(writes) == 2:
            raise KeyboardInterrupt
        writes.append(path)
        write_trajectories(path, part)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_trajectories", write_two)
        with pytest.raises(KeyboardInterrupt):
            commands.evaluate(load_config(toml, ["rollout.max_batch=3"]), attempts=folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("part_*")}
    assert len(kept) == 2
    sod("eval", toml, *settings)
    # Greedy attempts are those of an evaluation in one piece, and what was there was not made again.
    assert json.loads(numbers.read_text()) == metrics
    assert len(list(folder.glob("part_*"))) == 3
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())

    said = sod("eval", toml, *settings, "--set", "evaluation.temperature=0.5", code=2).output
    assert "holds attempts of other settings, in [evaluation]" in said
    other = folder / "part_00000.jsonl.gz"
    other.write_bytes((folder / "part_00002.jsonl.gz").read_bytes())
    assert "holds attempts at other tasks" in sod("eval", toml, *settings, code=2).output
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    said = sod("eval", toml, "--attempts", tmp_path / "full", code=2).output
    assert "is not empty; give a new folder for --attempts" in said


@pytest.mark.parametrize("command", ["train", "eval", "rollout", "score", "demo"])
def test_every_command_explains_itself(sod, command):
    assert command in sod("--help").output
    assert "Usage" in sod(command, "--help").output


def test_train_then_eval_rollout_and_score(sod, arithmetic, tmp_path):
    toml = arithmetic.toml("cli")
    result = sod("train", toml, "--quiet", "--set", "trainer.rounds=1", "--set", "evaluation.every=0")
    checkpoint = result.output.split("finished: ")[1].strip()
    assert checkpoint.endswith("round_00001_update_0000004")

    numbers = tmp_path / "eval.json"
    shown = sod("eval", toml, "--checkpoint", checkpoint, "--output", numbers).output
    metrics = json.loads(numbers.read_text())
    assert metrics["eval/tasks"] == 8.0
    assert "eval/success_mean" in shown

    stored = tmp_path / "t.jsonl.gz"
    said = sod("rollout", toml, "--output", stored, "--checkpoint", checkpoint, "--num-tasks", 3).output
    trajectories = read_trajectories(stored)
    assert len(trajectories) == 6
    assert "6 trajectories" in said

    steps = tmp_path / "steps.jsonl"
    models = ["--student", checkpoint, "--teacher", arithmetic.teacher]
    shown = sod("score", stored, *models, "--output", steps, "--epsilon", "0.01").output
    rows = [json.loads(line) for line in steps.read_text().splitlines()]
    assert len(rows) == sum(len(one.turns) for one in trajectories)
    assert "divergence (nats)" in shown
    for row in rows:
        first = next(r for r in rows if r["trajectory"] == row["trajectory"])
        ratio = (first["divergence"] + 0.01) / (row["divergence"] + 0.01)
        wanted = 1.0 if row["step"] == 0 else min(ratio, 1.2)
        assert row["weight"] == pytest.approx(wanted, rel=1e-4)


def test_rollouts_are_repeatable_and_of_the_split_asked_for(sod, arithmetic, tmp_path):
    toml = arithmetic.toml("split")
    files = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"]
    for file in files:
        sod("rollout", toml, "--output", file, "--split", "eval", "--num-tasks", 2)
    first, second = (
        [[turn.sampled_ids for turn in one.turns] for one in read_trajectories(file)] for file in files
    )
    assert first == second
    assert {one.task_id for one in read_trajectories(files[0])} == {"eval:1", "eval:2"}


def test_a_dry_run_examines_the_run_and_leaves_nothing_behind(sod, arithmetic):
    toml = arithmetic.toml("dry")
    output = sod("train", toml, "--dry-run").output
    for words in ("sod, 12 updates", "32 tasks; a round takes 8", "8 tasks: a success rate", "append-only"):
        assert words in output
    assert "fatal" not in output
    assert not (arithmetic.folder / "dry").exists()
    (arithmetic.folder / "dry").mkdir()
    (arithmetic.folder / "dry" / "notes.txt").touch()
    assert "is not empty; wanted a folder that is new" in sod("train", toml, "--dry-run", code=1).output
    assert "--resume" in sod("train", toml, "--dry-run", "--resume", code=1).output


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["trainer.rouds=2"], "unknown key [trainer] rouds; did you mean 'rounds'?"),
        (["algorithm.dleta=2"], "unknown key [algorithm] dleta; did you mean 'delta'?"),
        (["data.train='absent.jsonl'"], "absent.jsonl"),
        (["data.answer_column='result'"], "result"),
        (["student.model='./absent'"], "no such folder; wanted a Hugging Face checkpoint"),
        (["environment.tools=['pyton']"], "'pyton' is unknown; wanted 'python' or 'module:function'"),
        (["environment.tools=['toolbox:nope']"], "'toolbox:nope' cannot be imported"),
        (["environment.rewrad='math'"], "unknown key [environment] rewrad; did you mean 'reward'?"),
        (["environment.name='tols'"], "[environment] name = 'tols': unknown; did you mean 'tools'?"),
        (["trainer.device='cuda'"], "no CUDA device is visible"),
    ],
)
@pytest.mark.parametrize("is_dry", [True, False])
def test_what_is_wrong_ends_with_one_message_before_any_rollout(sod, arithmetic, settings, words, is_dry):
    toml = arithmetic.toml("wrong")
    sets = [part for one in settings for part in ("--set", one)]
    # Settings that cannot be read are an error; all else is a finding of the examination.
    is_found = is_dry and "unknown key" not in words and "[environment] name" not in words
    result = sod("train", toml, *sets, *(["--dry-run"] if is_dry else []), code=1 if is_found else 2)
    output = " ".join(re.sub("[│┃]", " ", result.output).split())
    assert words in output
    assert result.output.count("error:") == (0 if is_found else 1)
    assert "Traceback" not in result.output
    assert not (arithmetic.folder / "wrong").exists()


def test_a_traceback_is_there_for_those_who_ask(sod, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SOD_TRACEBACK", "1")
    result = sod("train", tmp_path / "absent.toml", code=2)
    assert "Traceback" in result.output + capfd.readouterr().err
    monkeypatch.delenv("SOD_TRACEBACK")
    result = sod("--traceback", "train", tmp_path / "absent.toml", code=2)
    assert "Traceback" in result.output + capfd.readouterr().err


def test_a_signal_says_how_to_go_on(sod, arithmetic, monkeypatch):
    toml = arithmetic.toml("ctrl_c")

    def part(self, name, done, total, metrics=None):
        if name == "updates" and done == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "part", part)
    result = sod("train", toml, "--quiet", "--set", "evaluation.every=0", code=130)
    assert "SIGINT: stopped after update 2 of 12; go on with: sod train" in result.output
    again = result.output.split("go on with: sod ")[1].strip()
    assert again == f"train {toml} --resume --set evaluation.every=0"
    monkeypatch.undo()
    monkeypatch.setenv("COLUMNS", "200")
    assert "finished: " in sod(*again.split(), "--quiet").output


def test_scoring_with_models_that_did_not_write_the_trajectories(sod, arithmetic, tmp_path):
    from sod.rollout.store import write_trajectories
    from sod.types import Trajectory, Turn

    stored = tmp_path / "t.jsonl.gz"
    write_trajectories(
        stored, [Trajectory(task_id="a", turns=(Turn(context_ids=(5,), sampled_ids=(99999,)),))]
    )
    models = ["--student", arithmetic.student, "--teacher", arithmetic.teacher]
    result = sod("score", stored, *models, code=2)
    assert "trajectory 0: has token id 99999, but the student's tokenizer ends at" in result.output


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("student", "section [student] is missing; give the model that is trained"),
        ("teacher", 'section [teacher] is missing; algorithm "sod" needs one'),
        ("data", "section [data] is missing; give the training file"),
        ("environment", "section [environment] is missing; it says what the student acts in"),
    ],
)
def test_a_section_that_the_algorithm_needs(sod, arithmetic, gone, words):
    toml = arithmetic.toml("gone")
    blocks = toml.read_text().split("\n[")
    toml.write_text("\n[".join(block for block in blocks if not block.startswith(gone)))
    assert words in sod("train", toml, code=2).output
    assert words[:30] in sod("train", toml, "--dry-run", code=1).output


def test_a_dry_run_of_supervised_training_reads_the_conversations(sod, arithmetic, tmp_path):
    toml = sft_toml(arithmetic.folder, output="sft_dry", student=arithmetic.student, rounds=1)
    assert "expert trajectories" in sod("train", toml, "--dry-run").output
    result = sod("train", toml, "--dry-run", "--set", "data.train='absent.jsonl'", code=1)
    assert "no such file; give expert conversations" in " ".join(result.output.split())


def test_supervised_training_takes_stored_trajectories_too(sod, arithmetic, tmp_path):
    toml = arithmetic.toml("store")
    stored = tmp_path / "t.jsonl.gz"
    sod("rollout", toml, "--output", stored, "--num-tasks", 4)
    toml = sft_toml(arithmetic.folder, output="sft_stored", student=arithmetic.student, rounds=1)
    sets = ["--set", f"data.train='{stored}'", "--set", "data.train_limit=6"]
    assert "expert trajectories" in sod("train", toml, "--dry-run", *sets).output
    assert "finished: " in sod("train", toml, "--quiet", *sets).output


def test_eval_and_rollout_say_what_they_miss(sod, arithmetic, tmp_path):
    bare = tmp_path / "bare.toml"
    bare.write_text('[run]\noutput = "x"\n[trainer]\nrounds = 1\n')
    assert "section [student] is missing" in sod("eval", bare, code=2).output
    with_student = ["--checkpoint", arithmetic.student]
    assert "section [environment] is missing" in sod("eval", bare, *with_student, code=2).output
    toml = arithmetic.toml("no_eval")
    text = toml.read_text().replace('eval = "eval.jsonl"\n', "").replace("every = 3", "every = 0")
    toml.write_text(text)
    assert "[data] eval is missing" in sod("eval", toml, code=2).output
