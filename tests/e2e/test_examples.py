"""The example settings are real: every one passes a dry run, sandbox included."""

from __future__ import annotations

from pathlib import Path

import pytest

from sod.commands import dry_run
from sod.config_file import load_config
from sod.errors import SandboxUnavailableError

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "examples" / "configs").glob("*.toml"))


def test_there_are_examples_of_the_papers_and_their_baselines():
    assert {load_config(path).algorithm.name for path in CONFIGS} == {
        "sft",
        "grpo",
        "opd",
        "sod",
        "atod",
        "stm",
        "simct",
    }


@pytest.mark.sandbox
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_example_passes_a_dry_run(path, tmp_path):
    config = load_config(path, [f"run.output='{tmp_path / 'run'}'"])
    try:
        lines = dry_run(config, resume=False)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    assert any("not checked" in line and config.student.model in line for line in lines)
    if config.algorithm.name != "sft":
        assert "training tasks: 8" in lines
        assert "tools: python" in lines
