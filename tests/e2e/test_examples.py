"""The example settings are real: every one passes a dry run, sandbox included."""

from __future__ import annotations

from pathlib import Path

import pytest

from sod.config_file import load_config
from sod.doctor import examine_run

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
    findings = {(each.area, each.subject): each for each in examine_run(config, is_offline=True)}
    broken = [each for each in findings.values() if each.level == "fatal"]
    if broken and broken[0].area == "sandbox":
        pytest.skip(broken[0].text)
    assert not broken
    assert f"{config.student.model} is on the hub" in findings["student", "checkpoint"].text
    if config.algorithm.name != "sft":
        assert findings["data", "training tasks"].text.startswith("8 tasks")
        assert findings["environment", "tools"].text == "python"
