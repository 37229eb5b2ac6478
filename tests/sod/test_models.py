"""Loading and checking models: from real folders, and with real failures."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from sod.config import StudentSection
from sod.config_teachers import TeacherSection
from sod.errors import ModelError
from sod.models import (
    build_qwen3,
    check_same_tokenizer,
    check_vocabulary,
    load_model,
    load_tokenizer,
    load_weights,
)
from sod.testing import make_tiny_checkpoint, make_tiny_tokenizer


def test_a_local_checkpoint_loads_with_its_tied_head(tiny_checkpoint):
    model = load_model(StudentSection(model=str(tiny_checkpoint)))
    assert not model.training
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.dtype == torch.float32
    assert load_model(TeacherSection(model=str(tiny_checkpoint), dtype="bfloat16")).dtype == torch.bfloat16


@pytest.mark.parametrize("loader", [load_model, load_tokenizer])
def test_a_folder_that_is_not_there_or_no_checkpoint(loader, tmp_path):
    with pytest.raises(ModelError, match=r"\[teacher\] model = .*no such folder"):
        loader(TeacherSection(model=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match=r"\[student\] model = .*no config.json in it"):
        loader(StudentSection(model=str(tmp_path)))


@pytest.mark.parametrize("loader", [load_model, load_tokenizer])
def test_a_hub_name_that_cannot_be_had_says_what_to_do(loader, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"'nobody/no-such-model': .*check its spelling, your network"):
        loader(StudentSection(model="nobody/no-such-model"))


def test_a_checkpoint_with_missing_weights_is_refused(tiny_checkpoint, tmp_path):
    folder = tmp_path / "holes"
    shutil.copytree(tiny_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    gone = sorted(weights)[3]
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 weights are missing from the checkpoint, the first is '{gone}'"):
        load_model(StudentSection(model=str(folder)))


def test_a_damaged_checkpoint_is_refused(tiny_checkpoint, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(StudentSection(model=str(folder)))


def test_tokenizers_must_agree_on_every_id(tiny_checkpoint):
    own = AutoTokenizer.from_pretrained(tiny_checkpoint)
    check_same_tokenizer(own, AutoTokenizer.from_pretrained(tiny_checkpoint))
    other = AutoTokenizer.from_pretrained(tiny_checkpoint)
    other.add_tokens(["<extra>"])
    size = max(own.get_vocab().values()) + 1
    with pytest.raises(
        ModelError, match=rf"differ at 1 ids; the first is id {size}: student None, teacher '<extra>'"
    ):
        check_same_tokenizer(own, other)
    with pytest.raises(ModelError, match=r"differ at \d+ ids; .*Take a teacher with the student's tokenizer"):
        check_same_tokenizer(own, make_tiny_tokenizer(vocab_size=300))


def test_a_vocabulary_larger_than_the_embedding_is_refused(tiny_model, tiny_tokenizer):
    check_vocabulary(tiny_model, tiny_tokenizer, "student")
    small = build(vocab_size=16)
    with pytest.raises(ModelError, match=r"teacher: the model has 16 embedding rows, but .* ids up to \d+"):
        check_vocabulary(small, tiny_tokenizer, "teacher")


def build(**more):
    values = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 32,
        "max_positions": 16,
        "seed": 0,
        **more,
    }
    return build_qwen3(**values)


def test_a_built_model_depends_on_its_seed_alone():
    before = torch.random.get_rng_state()
    first, again, other = build(), build(), build(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert first.get_output_embeddings().weight is first.get_input_embeddings().weight


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="hidden_size = 15 is no multiple of num_heads = 2"):
        build(hidden_size=15)


def test_weights_of_another_shape_are_refused(tmp_path, tiny_model):
    other = make_tiny_checkpoint(tmp_path / "other", hidden_size=32)
    with pytest.raises(ModelError, match="does not hold weights for this model"):
        load_weights(tiny_model, other)
