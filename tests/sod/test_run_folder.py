"""The run folder: new, locked, and the same when reopened."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from sod.config import CheckpointSection, RolloutSection, RunConfig, RunSection, TrainerSection
from sod.errors import CheckpointError, ConfigError
from sod.run_folder import RunFolder


def config(path: Path, **more) -> RunConfig:
    values = {"trainer": TrainerSection(rounds=2), **more}
    return RunConfig(run=RunSection(output=path), **values)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with RunFolder.create(config(tmp_path / "run")), pytest.raises(ConfigError, match="another process"):
        RunFolder.reopen(config(tmp_path / "run"))
    RunFolder.reopen(config(tmp_path / "run")).close()


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        RunFolder.create(config(tmp_path))
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder.create(config(tmp_path / "note.txt"))
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_moved_run_with_more_rounds_is_the_same_run(tmp_path):
    RunFolder.create(config(tmp_path / "run")).close()
    (tmp_path / "run").rename(tmp_path / "moved")
    longer = config(
        tmp_path / "moved", trainer=TrainerSection(rounds=9), checkpoint=CheckpointSection(keep_last=5)
    )
    with RunFolder.reopen(longer) as folder:
        assert "rounds = 9" in (folder.path / "config.resolved.toml").read_text()


def test_other_settings_are_named_all_at_once(tmp_path):
    RunFolder.create(config(tmp_path / "run")).close()
    other = config(
        tmp_path / "run",
        trainer=TrainerSection(rounds=2, epochs=3),
        rollout=RolloutSection(temperature=0.5),
    )
    with pytest.raises(CheckpointError) as caught:
        RunFolder.reopen(other)
    assert "[rollout] temperature: 1.0 -> 0.5; [trainer] epochs: 1 -> 3" in str(caught.value)
    assert "start a new run in another folder" in str(caught.value)


def test_a_disk_that_takes_nothing_is_told_and_leaves_what_was_there(tmp_path):
    made = config(tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(CheckpointError, match=r"config\.resolved\.toml cannot be written: .*Free disk"):
            RunFolder.create(made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # What was begun is no run, and in nobody's way.
    RunFolder.create(made).close()
    before = {name: (tmp_path / "run" / name).read_text() for name in ("config.resolved.toml", "env.json")}
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            RunFolder.reopen(made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert before == {name: (tmp_path / "run" / name).read_text() for name in before}


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output = .*file/run': cannot be written: "):
        RunFolder.create(config(tmp_path / "file" / "run"))
