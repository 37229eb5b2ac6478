"""The text game: methods with a teacher or a reward on generated cooking games, from equal cold starts."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from transformers import PreTrainedTokenizerFast

from benchmarks.evidence.grid import Supervised, load_grid, section_of
from benchmarks.evidence.jobs import Job, read_result
from benchmarks.evidence.pausing import PausingDisplay
from benchmarks.evidence.phases import checkpoint_of, train_on, write_untrained
from benchmarks.evidence.settings import supervised_config
from benchmarks.evidence.summary import BASELINE, difference, estimate
from sod import commands
from sod.config import RunConfig
from sod.config_file import config_from_dict
from sod.config_schema import Above, AtLeast, Section
from sod.data import read_rows
from sod.envs.registry import TaskRequest
from sod.envs.textworld_env import TextWorldSection
from sod.metrics import read_rows as read_metrics
from sod.seeding import derive_seed
from sod.task_files import write_expert_file, write_task_file
from sod.testing import make_tiny_tokenizer

FILE = Path(__file__).with_name("textworld.toml")
ROLES = ("cold", "teacher")
_MAX_POSITIONS = 4096
_GAMES = ("num_train", "num_check", "num_held_out")
# The same games for every seed.
_EXPERT_SEED, _TRAIN_SEED, _CHECK_SEED, _HELD_OUT_SEED = 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class TextSize(Section):
    """How much work the experiment is; see textworld.toml."""

    update: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    vocab_size: Annotated[int, Above(0)]
    num_train: Annotated[int, Above(0)]
    num_check: Annotated[int, Above(0)]
    num_held_out: Annotated[int, Above(0)]
    rounds: Annotated[int, Above(0)]
    tasks_per_round: Annotated[int, Above(0)]
    num_samples: Annotated[int, AtLeast(2)]
    minibatch: Annotated[int, Above(0)]
    epochs: Annotated[int, Above(0)]
    warmup_updates: Annotated[int, AtLeast(0)]
    anneal_rounds: Annotated[int, Above(0)]
    eval_every: Annotated[int, Above(0)]
    teacher: Supervised
    student: Supervised


class TextPlan:
    """Makes the jobs of the experiment."""

    def __init__(self, size: str, root: Path, display: PausingDisplay, path: Path = FILE) -> None:
        """Read the settings.

        Args:
            size: A table of the file, "full" or "tiny".
            root: Output folder; the games are kept in it too.
            display: Shows progress, and waits while a pause is asked for.
            path: The settings.
        """
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        values = dict(raw[size])
        for role in ("teacher", "student"):
            values[role] = section_of(Supervised, values[role], f"{size} {role}")
        self.size: TextSize = section_of(TextSize, values, size)
        self._root, self._display, self._raw = root.resolve(), display, raw
        self._grid = load_grid(("cascade",))
        self._environment = raw["environment"] | {"cache": str(self._root / "games")}

    def jobs(self) -> list[Job]:
        """List all jobs, each after what it needs."""
        models, training = _settings_of(self.size)
        common = {**self._raw["environment"], "rollout": self._raw["rollout"], "models": models}
        jobs = [Job(name="data", needs=(), settings=common, work=self._data)]
        for seed in self.size.seeds:
            names = [f"seed_{seed}/{role}" for role in ROLES]
            jobs += [
                Job(name=name, needs=("data",), settings=common, work=partial(self._supervised, seed, role))
                for name, role in zip(names, ROLES, strict=True)
            ]
            for method in self.size.methods:
                settings = {**common, "training": training, "algorithm": self._algorithm(method)}
                jobs.append(
                    Job(
                        name=f"seed_{seed}/cells/{method}",
                        needs=tuple(names),
                        settings=settings,
                        work=partial(self._cell, seed, method),
                    )
                )
        return jobs

    def report(self) -> str:
        """Write a table of what is done."""
        titles = {name: self._grid.methods[name].title for name in self.size.methods}
        found = {role: self._results(role) for role in ROLES}
        found |= {name: self._results(f"cells/{name}") for name in (*self.size.methods, BASELINE)}
        lines = [
            "| | games solved, % | score, % | − cold start | − OPD | turns | invalid turns | seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, results in found.items():
            if results:
                means = [_mean(results, key) for key in ("success", "score", "turns", "errors")]
                gaps = [
                    "" if name in (*ROLES, base) else _gap(results, found[base])
                    for base in ("cold", BASELINE)
                ]
                cells = [titles.get(name, name), *means[:2], *gaps, *means[2:], str(len(results))]
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def _results(self, name: str) -> dict[int, dict[str, Any]]:
        found = {seed: read_result(self._root, f"seed_{seed}/{name}") for seed in self.size.seeds}
        return {seed: result for seed, result in found.items() if result is not None}

    def _data(self, folder: Path) -> Mapping[str, Any]:
        section = TextWorldSection(**{**self._environment, "cache": Path(self._environment["cache"])})
        size, turns = self.size, self._raw["rollout"]["max_turns"]
        traces = max(size.teacher.traces, size.student.traces)
        expert = folder / "expert.jsonl"
        write_expert_file(section, TaskRequest(num_tasks=traces, seed=_EXPERT_SEED), expert, max_turns=turns)
        # All of the library's split "train": the others have foods that no model here has ever read of.
        for name, seed, count in (
            ("train", _TRAIN_SEED, size.num_train),
            ("check", _CHECK_SEED, size.num_check),
            ("held_out", _HELD_OUT_SEED, size.num_held_out),
        ):
            request = TaskRequest(num_tasks=count, seed=seed)
            write_task_file(section, request, folder / f"{name}.jsonl")
        rows = [row for _, row in read_rows(expert, "textworld", None)]
        texts = [message["content"] for row in rows for message in row["messages"]]
        make_tiny_tokenizer(vocab_size=size.vocab_size, texts=texts).save_pretrained(folder / "tokenizer")
        return {"expert_turns": sum(len(row["messages"]) // 2 for row in rows) / len(rows)}

    def _supervised(self, seed: int, role: str, folder: Path) -> Mapping[str, Any]:
        """Train a model from nothing on the expert's conversations; the cold start sees the first of them."""
        phase = self.size.student if role == "cold" else self.size.teacher
        data, untrained = self._root / "data", folder / "untrained"
        tokenizer = PreTrainedTokenizerFast.from_pretrained(data / "tokenizer")
        write_untrained(phase, tokenizer, derive_seed(seed, role), untrained, _MAX_POSITIONS)
        traces = folder / "traces.jsonl"
        lines = (data / "expert.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        traces.write_text("".join(lines[: phase.traces]), encoding="utf-8")
        config = supervised_config(
            phase, seed=seed, untrained=untrained, traces=traces, output=folder / "run"
        )
        return self._reading(train_on(config, self._display))

    def _cell(self, seed: int, method: str, folder: Path) -> Mapping[str, Any]:
        algorithm = self._algorithm(method)
        size, cold = self.size, checkpoint_of(self._root, f"seed_{seed}/cold")
        raw = self._settings(cold, "check", folder / "run", seed) | {
            "algorithm": algorithm,
            "optimizer": {
                "name": "muon",
                **self._grid.updates[size.update],
                "beta2": 0.95,
                "weight_decay": 0.0,
                "warmup_updates": size.warmup_updates,
                "schedule": "linear",
                "final_fraction": 0.2,
            },
            "rollout": self._raw["rollout"] | {"num_samples": size.num_samples},
            "evaluation": {"every": size.eval_every},
            "checkpoint": {"every": 1, "keep_last": 1},
        }
        raw["trainer"] |= {
            "rounds": size.rounds,
            "tasks_per_round": size.tasks_per_round,
            "epochs": size.epochs,
            "minibatch_trajectories": size.minibatch,
        }
        if algorithm["name"] != "grpo":
            raw["teacher"] = {"model": str(checkpoint_of(self._root, f"seed_{seed}/teacher"))}
        config = config_from_dict(raw, base=Path())
        checkpoint = train_on(config, self._display)
        rows = read_metrics(config.run.output / "metrics.jsonl")
        curve = [(row["round"], row["eval/success_mean"]) for row in rows if row["kind"] == "eval"]
        return {**self._reading(checkpoint), "curve": curve}

    def _algorithm(self, method: str) -> dict[str, Any]:
        """The grid's, annealed over the rounds of this experiment where it anneals at all."""
        algorithm = dict(self._grid.methods[method].algorithm)
        return algorithm | {key: self.size.anneal_rounds for key in algorithm if key == "anneal_rounds"}

    def _reading(self, checkpoint: Path) -> dict[str, Any]:
        config = self._policy(checkpoint)
        attempts = commands.evaluate(config, self._display.wait).trajectories
        count = len(attempts)
        errors = sum(one.num_errors for one in attempts)
        paid = self._raw["environment"]["invalid_penalty"] * errors
        return {
            "success": sum(one.is_success for one in attempts) / count,
            "score": (sum(one.reward for one in attempts) + paid) / count,
            "turns": sum(len(one.turns) for one in attempts) / count,
            "errors": errors / count,
        }

    def _policy(self, checkpoint: Path) -> RunConfig:
        raw = self._settings(checkpoint, "held_out", self._root, 0)
        return config_from_dict(raw | {"algorithm": {"name": "opd"}}, base=Path())

    def _settings(self, student: Path, questions: str, output: Path, seed: int) -> dict[str, Any]:
        data = self._root / "data"
        files = {"train": str(data / "train.jsonl"), "eval": str(data / f"{questions}.jsonl")}
        return {
            "run": {"output": str(output), "seed": seed},
            "student": {"model": str(student)},
            "data": {**files, "answer_column": ""},
            "environment": self._environment,
            "rollout": self._raw["rollout"],
            "trainer": {"rounds": 1, "max_microbatch_tokens": _MAX_POSITIONS, "device": "cpu"},
        }


def _mean(results: Mapping[int, Mapping[str, Any]], key: str) -> str:
    factor = 100.0 if key in ("success", "score") else 1.0
    value = estimate(results, lambda one: factor * one[key])
    return "" if value is None else _written(value.mean, value.error, ".1f")


def _gap(results: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]) -> str:
    value = difference(results, base, lambda one: 100.0 * one["success"])
    return "" if value is None else _written(value.mean, value.error, "+.1f")


def _written(mean: float, error: float, form: str) -> str:
    return f"{mean:{form}}" if math.isnan(error) else f"{mean:{form}} ± {error:.1f}"


def _settings_of(size: TextSize) -> tuple[dict[str, Any], dict[str, Any]]:
    """What games and models depend on, and what only a training run does."""
    values = {key: value for key, value in vars(size).items() if key not in ("methods", "seeds")}
    roles = {role: vars(values.pop(role)) for role in ("teacher", "student")}
    models = {key: values.pop(key) for key in list(values) if key == "vocab_size" or key in _GAMES}
    return models | roles, values


def sizes(path: Path = FILE) -> Sequence[str]:
    """Names of the sizes that the settings have."""
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    return [name for name in raw if name not in ("environment", "rollout")]
