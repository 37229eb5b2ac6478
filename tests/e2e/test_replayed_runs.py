"""A run made again from its stored trajectories: to the last number, or the first difference is named."""

from __future__ import annotations

import pytest
from training_runs import trainer_of
from typer.testing import CliRunner

from sod import cli
from sod.errors import ConfigError, DataError
from sod.loop.display import Display
from sod.replay import first_difference, replay_config
from sod.trainer import SODTrainer

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def stored(arithmetic):
    """A finished run of two rounds, its evaluations included."""
    toml = arithmetic.toml("to_replay")
    return trainer_of(toml, "trainer.rounds=2", "trainer.epochs=1", "evaluation.every=2").train().folder


def replayed(stored, name, *overrides):
    config = replay_config(stored, stored.parent / name, overrides)
    SODTrainer.from_config(config, display=Display(is_quiet=True)).train()
    return first_difference(stored, config.run.output)


def test_the_same_settings_give_the_same_numbers_without_sampling(stored, monkeypatch):
    from sod.engines.hf import HFEngine

    monkeypatch.setattr(HFEngine, "rollout", None)
    result = CliRunner().invoke(cli.app, ["replay", str(stored), "--output", str(stored.parent / "again")])
    assert result.exit_code == 0, result.output
    assert f"every number of 4 updates is that of {stored}" in " ".join(result.output.split())


def test_another_objective_differs_and_says_where_and_its_later_rounds_must_be_meant(stored):
    other = ("algorithm.name='opd'", "trainer.alignment_bound=inf", "algorithm.divergence='forward_kl'")
    difference = replayed(stored, "other", *other)
    assert difference.startswith("round 0, update 0: ")
    assert " was " in difference


def test_what_cannot_be_replayed_is_named(stored, arithmetic, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run \(config\.resolved\.toml is missing\)"):
        replay_config(tmp_path, tmp_path / "x")
    with pytest.raises(
        ConfigError, match=r"has stored 2 of 3 rounds; finish it, or take --set trainer\.rounds=2"
    ):
        replay_config(stored, tmp_path / "x", ["trainer.rounds=3"])
    with pytest.raises(ConfigError, match=r'algorithm "sft" of .* reads expert data'):
        replay_config(arithmetic.sft, tmp_path / "x")
    with pytest.raises(ConfigError, match=r'\[evaluation\] every = 1: engine "replay" plays what was stored'):
        trainer_of(
            arithmetic.toml("eval_replay"),
            "engine.name='replay'",
            f"engine.run='{stored}'",
            "evaluation.every=1",
        )
    config = replay_config(stored, tmp_path / "gone")
    (stored / "trajectories" / "round_0001.jsonl.gz").rename(stored / "moved")
    with pytest.raises(DataError, match=r"round_0001\.jsonl\.gz does not exist"):
        SODTrainer.from_config(config, display=Display(is_quiet=True)).train()
    (stored / "moved").rename(stored / "trajectories" / "round_0001.jsonl.gz")
