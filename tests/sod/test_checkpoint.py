"""Checkpoints: whole or not there, whatever happens while one is written."""

from __future__ import annotations

import os
import resource

import pytest
import torch
from transformers import AutoModelForCausalLM

from sod.checkpoint import (
    TrainerState,
    discard_after,
    latest_checkpoint,
    load_state,
    recover_checkpoint,
    save_checkpoint,
)
from sod.config import AdamWSection
from sod.errors import CheckpointError
from sod.optim import OptimizerSet


def state(round_index=1, update=4, **more):
    return TrainerState(
        round=round_index,
        update=update,
        file_bytes={"metrics": 12},
        round_metrics=({"loss/total": 0.1},),
        round_steps={"0": (2.0, 0.1 + 0.2, 2.0)},
        **more,
    )


@pytest.fixture
def parts(tiny_model, tiny_tokenizer):
    optimizer = OptimizerSet(tiny_model, AdamWSection(learning_rate=0.01))
    ids = torch.arange(6)[None]
    tiny_model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step(1.0)
    return {"model": tiny_model, "tokenizer": tiny_tokenizer, "optimizer_state": optimizer.state_dict()}


def test_everything_comes_back(tmp_path, parts):
    folder = save_checkpoint(tmp_path, state(), keep_last=2, **parts)
    assert latest_checkpoint(tmp_path) == folder
    loaded, optimizer_state = load_state(folder)
    assert loaded == state()
    key = next(iter(parts["optimizer_state"][0]["state"]))
    for name, value in parts["optimizer_state"][0]["state"][key].items():
        assert torch.equal(optimizer_state[0]["state"][key][name], value), name
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, value in parts["model"].state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_old_ones_go_but_never_the_latest(tmp_path, parts):
    for index in range(4):
        save_checkpoint(tmp_path, state(index, index), keep_last=2, **parts)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["latest", "round_00002_update_0000002", "round_00003_update_0000003"]


def test_saving_the_same_state_again_changes_nothing(tmp_path, parts):
    folder = save_checkpoint(tmp_path, state(), keep_last=2, **parts)
    before = (folder / "trainer_state.pt").stat().st_mtime_ns
    assert save_checkpoint(tmp_path, state(), keep_last=2, **parts) == folder
    assert (folder / "trainer_state.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize("limit_bytes", [100, 5_000, 300_000])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, parts, limit_bytes):
    first = save_checkpoint(tmp_path, state(1, 1), keep_last=2, **parts)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written .*before it are whole"):
            save_checkpoint(tmp_path, state(2, 2), keep_last=1, **parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert latest_checkpoint(tmp_path) == first
    assert load_state(first)[0].update == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", first.name]


def test_what_a_killed_process_left_is_removed(tmp_path, parts):
    folder = save_checkpoint(tmp_path, state(1, 1), keep_last=2, **parts)
    (tmp_path / "tmp-round_00002_update_0000002").mkdir()
    (tmp_path / "tmp-latest").write_text("x")
    (tmp_path / "round_00002_update_0000002").mkdir()
    discard_after(tmp_path, folder)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", folder.name]


def test_no_checkpoint_yet(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None
    discard_after(tmp_path / "none", None)


def test_a_pointer_to_nothing_is_refused(tmp_path):
    (tmp_path / "latest").write_text("round_00009_update_0000009\n")
    with pytest.raises(CheckpointError, match=r"names 'round_00009_.*', .* no whole .*: its folder is gone"):
        latest_checkpoint(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* is whole \(round_00009_update_0000009: its"
    ):
        recover_checkpoint(tmp_path)


def test_the_last_whole_one_is_recovered_and_damaged_ones_are_kept_aside(tmp_path, parts):
    folders = [save_checkpoint(tmp_path, state(n, n), keep_last=9, **parts) for n in range(1, 6)]
    (folders[4] / "tokenizer.json").unlink()
    os.truncate(folders[3] / "model.safetensors", 100)
    # Of the right size, but nothing that can be read.
    tensors = folders[2] / "trainer_state.pt"
    tensors.write_bytes(bytes(tensors.stat().st_size))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing; go on by --resume"):
        latest_checkpoint(tmp_path)

    found = recover_checkpoint(tmp_path)
    assert (found.folder, found.state) == (folders[1], state(2, 2))
    assert found.description == "resumed after 2 rounds and 2 updates from round_00002_update_0000002"
    assert "round_00005_update_0000005: tokenizer.json is missing" in found.problem
    assert "round_00004_update_0000004: model.safetensors has 100 bytes, wanted" in found.problem
    assert "round_00003_update_0000003: load_state:" in found.problem
    assert latest_checkpoint(tmp_path) == folders[1]
    names = sorted(entry.name for entry in tmp_path.iterdir())
    aside = [f"damaged-{folder.name}" for folder in folders[2:]]
    assert names == [*aside, "latest", folders[0].name, folders[1].name]
    (tmp_path / "tmp-round_00006_update_0000006").mkdir()
    again = recover_checkpoint(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
    assert (again.folder, again.problem) == (folders[1], None)


def test_an_empty_pointer_takes_the_newest_and_no_pointer_none(tmp_path, parts):
    folder = save_checkpoint(tmp_path, state(), keep_last=2, **parts)
    (tmp_path / "latest").write_text("")
    assert recover_checkpoint(tmp_path).folder == folder
    assert latest_checkpoint(tmp_path) == folder
    (folder / "files.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"files\.json cannot be read"):
        latest_checkpoint(tmp_path)
    assert recover_checkpoint(tmp_path / "none") is None


def test_damage_and_other_versions_are_refused(tmp_path, parts):
    folder = save_checkpoint(tmp_path, state(), keep_last=2, **parts)
    text = (folder / "trainer_state.json").read_text()
    (folder / "trainer_state.json").write_text(text.replace('"version": 2', '"of_another": 1, "version": 9'))
    with pytest.raises(CheckpointError, match="has version 9, wanted 2"):
        load_state(folder)
    (folder / "trainer_state.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(folder)
    (folder / "trainer_state.json").write_text(text)
    (folder / "trainer_state.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(folder)
