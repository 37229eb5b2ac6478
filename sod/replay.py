"""A finished run once more, from its stored trajectories instead of from an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sod.config import RunConfig
from sod.config_engines import ReplaySection
from sod.config_file import load_config
from sod.errors import ConfigError
from sod.metrics import read_rows
from sod.rollout.store import round_file
from sod.run_folder import CONFIG_FILE


def replay_config(run: Path, output: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Give the settings under which a run is replayed: its own, the engine replaced, without evaluation.

    Args:
        run: Folder of the run.
        output: Folder of the replay.
        overrides: Settings that win over the run's, as `section.key=value`.

    Returns:
        The settings.

    Raises:
        ConfigError: There is no run, or it has not stored so many rounds.
    """
    source = run / CONFIG_FILE
    if not source.is_file():
        raise ConfigError(f"sod replay: {run} holds no run ({CONFIG_FILE} is missing); give a run folder")
    config = load_config(source, overrides, is_resolved=True)
    if config.algorithm.reads_expert:
        raise ConfigError(
            f'sod replay: algorithm "{config.algorithm.name}" of {run} reads expert data, which '
            "no rollout has stored; train it again instead"
        )
    stored = sum(round_file(run, index).is_file() for index in range(config.trainer.rounds))
    if stored < config.trainer.rounds:
        raise ConfigError(
            f"sod replay: {run} has stored {stored} of {config.trainer.rounds} rounds; finish it, or take "
            f"--set trainer.rounds={stored}, which changes a learning-rate schedule"
        )
    return replace(
        config,
        run=replace(config.run, output=output.resolve()),
        engine=ReplaySection(run=run.resolve()),
        evaluation=replace(config.evaluation, every=0),
    )


def first_difference(run: Path, output: Path) -> str | None:
    """Compare the updates of a replay with those of the run, number by number, times left out.

    Args:
        run: Folder of the run.
        output: Folder of its replay.

    Returns:
        Where they differ first, in words; None where every number is the same.
    """
    before, after = _updates(run), _updates(output)
    for old, new in zip(before, after, strict=False):
        for key in sorted(old.keys() | new.keys()):
            if repr(old.get(key)) != repr(new.get(key)):
                at = f"round {old['round']}, update {old['update']}"
                return f"{at}: {key} was {old.get(key)} and is {new.get(key)}"
    if len(before) != len(after):
        return f"{len(before)} updates were made, and {len(after)} are"
    return None


def _updates(folder: Path) -> list[Mapping[str, Any]]:
    rows = read_rows(folder / "metrics.jsonl")
    updates = [row for row in rows if row["kind"] == "update"]
    return [{key: row[key] for key in sorted(row) if not key.startswith("time/")} for row in updates]
