"""The checkpoint that the other tests stand on."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sod.testing import make_tiny_checkpoint, make_tiny_tokenizer


def test_the_checkpoint_loads_ties_its_embeddings_and_is_the_same_for_the_same_seed(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_tiny_checkpoint(tmp_path / name / "deep", hidden_size=32, num_layers=1, seed=seed)
    assert torch.equal(torch.rand(1), expected)
    files = {path.name for path in (tmp_path / "a/deep").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"} <= files
    for file in files:
        first, second = ((tmp_path / name / "deep" / file).read_bytes() for name in "ab")
        assert first == second, file
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "deep") for name in "ac"]
    assert models[0].lm_head.weight is models[0].model.embed_tokens.weight
    assert not torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a/deep")
    text = 'Ünïcode\n <tool_call>{"a": 1}</tool_call><|im_end|>'
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids("</tool_call>") in ids
    assert len(tokenizer) <= models[0].config.vocab_size


def test_bad_sizes_are_named(tmp_path):
    with pytest.raises(ValueError, match="hidden_size must be a multiple of 32, got 48"):
        make_tiny_checkpoint(tmp_path, hidden_size=48)
    with pytest.raises(ValueError, match="vocab_size must be 265 or more, got 100"):
        make_tiny_tokenizer(vocab_size=100)
