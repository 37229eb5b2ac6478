"""The settings of every run, as a TOML file would have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence.grid import Cell, Grid, Supervised
from sod.config import RunConfig
from sod.config_file import config_from_dict

Raw = dict[str, dict[str, Any]]
_MICROBATCH_TOKENS = 4096
_UPDATES_PER_ROUND = 10


def environment(grid: Grid, *, has_faults: bool) -> dict[str, Any]:
    """The [environment] that attempts are made in."""
    section: dict[str, Any] = {
        "name": "ledger",
        "max_errors_in_a_row": grid.world.max_errors_in_a_row,
        "python_workers": 1,
    }
    return section | ({"fault_rate": grid.world.fault_rate} if has_faults else {})


def supervised_config(
    phase: Supervised, *, seed: int, untrained: Path, traces: Path, output: Path
) -> RunConfig:
    """Settings of a phase on the expert's traces.

    Muon with a short warm-up and a linear fall to a tenth; constant where the end is not known beforehand.
    """
    per_round = rounds_of(phase, 0)[1]
    has_end = phase.target is None
    raw: Raw = {
        "run": {"output": str(output), "seed": seed},
        "student": {"model": str(untrained)},
        "data": {"train": str(traces)},
        "algorithm": {"name": "sft"},
        "optimizer": {
            "name": "muon",
            "matrix_learning_rate": 0.02,
            "learning_rate": 3e-3,
            "beta2": 0.95,
            "weight_decay": 0.0,
            "warmup_updates": min(20, phase.updates // 4),
            "schedule": "linear" if has_end else "constant",
            "final_fraction": 0.1 if has_end else 0.0,
        },
        "rollout": {"max_trajectory_tokens": _MICROBATCH_TOKENS},
        "trainer": {
            "rounds": rounds_of(phase, phase.updates)[0],
            "tasks_per_round": phase.minibatch * per_round,
            "minibatch_trajectories": phase.minibatch,
            "max_microbatch_tokens": _MICROBATCH_TOKENS,
            "device": "cpu",
        },
        "checkpoint": {"every": 5, "keep_last": 1},
    }
    return config_from_dict(raw, base=Path())


def rounds_of(phase: Supervised, updates: int) -> tuple[int, int]:
    """Give the rounds that so many updates of a phase are, and the updates of one."""
    per_round = min(_UPDATES_PER_ROUND, phase.updates if phase.target is None else phase.check_every)
    return updates // per_round, per_round


def cell_config(
    grid: Grid, cell: Cell, *, cold: Path, teacher: Path, train: Path, check: Path, output: Path
) -> RunConfig:
    """Settings of one cell.

    Args:
        grid: The grid.
        cell: Which.
        cold: Checkpoint of the seed's cold start.
        teacher: Checkpoint of the regime's teacher.
        train: Training tasks, or for "sft" the teacher's own rollouts on them.
        check: Questions of the learning curve.
        output: Run folder.
    """
    size, algorithm = grid.size, grid.methods[cell.method].algorithm
    is_sft = algorithm["name"] == "sft"
    raw: Raw = {
        "run": {"output": str(output), "seed": cell.seed},
        "student": {"model": str(cold)},
        "data": {"train": str(train), "eval": str(check)},
        "environment": environment(grid, has_faults=grid.regimes[cell.regime].has_faults),
        "algorithm": dict(algorithm),
        "optimizer": {
            "name": "muon",
            **grid.updates[cell.update],
            "beta2": 0.95,
            "weight_decay": 0.0,
            "warmup_updates": size.warmup_updates,
            "schedule": "linear",
            "final_fraction": 0.2,
        },
        "rollout": {**grid.rollout, "num_samples": size.num_samples},
        "trainer": {
            "rounds": size.rounds,
            "tasks_per_round": size.tasks_per_round * (size.num_samples if is_sft else 1),
            "epochs": size.epochs,
            "minibatch_trajectories": size.minibatch,
            "max_microbatch_tokens": _MICROBATCH_TOKENS,
            "device": "cpu",
        },
        "evaluation": {"every": size.eval_every},
        "checkpoint": {"every": 1, "keep_last": 1},
    }
    if algorithm["name"] not in ("sft", "grpo"):
        raw["teacher"] = {"model": str(teacher)}
    return config_from_dict(raw, base=Path())


def policy_config(
    grid: Grid, *, checkpoint: Path, questions: Path, has_faults: bool, seed: int = 0, num_samples: int = 1
) -> RunConfig:
    """Settings for rolling a checkpoint out on questions, sampled or greedily."""
    raw: Raw = {
        # Only a training run writes to its folder.
        "run": {"output": str(questions.parent), "seed": seed},
        "student": {"model": str(checkpoint)},
        "data": {"train": str(questions), "eval": str(questions)},
        "environment": environment(grid, has_faults=has_faults),
        "algorithm": {"name": "opd"},
        "rollout": {**grid.rollout, "num_samples": num_samples},
        "trainer": {"rounds": 1, "max_microbatch_tokens": _MICROBATCH_TOKENS, "device": "cpu"},
    }
    return config_from_dict(raw, base=Path())


def describe(grid: Grid, cell: Cell | None = None) -> Mapping[str, Any]:
    """Everything of the grid that a result depends on, to be kept beside it."""
    size = grid.size
    kept: dict[str, Any] = {
        "world": _plain(grid.world),
        "vocab_size": size.vocab_size,
        "teacher": _plain(size.teacher),
        "student": _plain(size.student),
    }
    if cell is not None:
        regime = grid.regimes[cell.regime]
        kept |= {
            "size": {key: value for key, value in _plain(size).items() if isinstance(value, int)},
            "rollout": dict(grid.rollout),
            "update": dict(grid.updates[cell.update]),
            "regime": _plain(regime),
            "algorithm": dict(grid.methods[cell.method].algorithm),
        }
    return kept


def _plain(section: Any) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(section).items()}
