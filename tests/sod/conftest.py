"""Fixtures of the loop's tests: one tiny checkpoint per session, and a model whose choices are clear."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sod.testing import make_tiny_checkpoint
from tests.sod.tiny import sharpened

transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order: results are then repeatable to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Folder of a random Qwen3-architecture checkpoint with tokenizer and template."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_checkpoint):
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture
def tiny_model(tiny_checkpoint):
    """The checkpoint with larger weights, so that probabilities depend visibly on every earlier token."""
    return sharpened(AutoModelForCausalLM.from_pretrained(tiny_checkpoint))
