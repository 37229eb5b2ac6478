"""The jobs of a grid: questions and models that cells share, and the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from benchmarks.evidence.grid import TEACHERS, Cell, Grid, Supervised
from benchmarks.evidence.guides import guide_sums
from benchmarks.evidence.jobs import Job
from benchmarks.evidence.pausing import PausingDisplay
from benchmarks.evidence.readings import read_attempts, split_steps
from benchmarks.evidence.rescue import rescue_rates
from benchmarks.evidence.settings import cell_config, describe, policy_config, rounds_of, supervised_config
from benchmarks.evidence.worlds import ledger_section, make_questions, make_tokenizer, make_traces
from sod import commands
from sod.checkpoint import latest_checkpoint
from sod.config import RunConfig
from sod.data import load_tasks, write_tasks
from sod.envs.ledger_faults import LedgerFaults
from sod.errors import CheckpointError
from sod.metrics import read_rows
from sod.models import build_qwen3
from sod.rollout.store import write_trajectories
from sod.run_folder import CONFIG_FILE
from sod.seeding import derive_seed
from sod.trainer import SODTrainer
from sod.types import Task

DATA = "data"
# The same questions for every seed and every grid that is ever run.
_HELD_OUT_SEED, _CHECK_SEED, _START_SEED = 20261123, 20261124, 20261125
READINGS = {"faulty": True, "honest": False}
"""The two ways in which every model answers the held-out questions: with and without tool faults."""


class Plan:
    """Makes the jobs of a grid."""

    def __init__(self, grid: Grid, root: Path, display: PausingDisplay) -> None:
        """Take the grid.

        Args:
            grid: What to run.
            root: Output folder.
            display: Shows progress, and waits while a pause is asked for.
        """
        self._grid = grid
        self._root = root.resolve()
        self._display = display
        self._common = describe(grid)

    def jobs(self, cells: Sequence[Cell]) -> list[Job]:
        """List the jobs of cells, each after what it needs."""
        jobs: dict[str, Job] = {}
        for cell in cells:
            for job in self._chain(cell):
                jobs.setdefault(job.name, job)
        return list(jobs.values())

    def _chain(self, cell: Cell) -> list[Job]:
        regime, seed = self._grid.regimes[cell.regime], cell.seed
        tasks, cold, teacher = (
            f"seed_{seed}/tasks",
            f"seed_{seed}/cold",
            f"seed_{seed}/teacher_{regime.teacher}",
        )
        chain = [
            self._job(DATA, (), self._data),
            self._job(tasks, (DATA,), partial(self._tasks, seed)),
            self._job(cold, (tasks,), partial(self._supervised, seed, "cold")),
            self._job(teacher, (tasks,), partial(self._supervised, seed, f"teacher_{regime.teacher}")),
        ]
        needs = [tasks, cold, teacher]
        guide = f"seed_{seed}/guide_{cell.regime}"
        chain.append(self._job(guide, (cold, teacher), partial(self._guide, cell)))
        if regime.has_faults:
            rescue = f"seed_{seed}/rescue_{regime.teacher}"
            chain.append(self._job(rescue, (cold, teacher), partial(self._rescue, seed, regime.teacher)))
        if self._grid.methods[cell.method].algorithm["name"] == "sft":
            rollouts = f"seed_{seed}/rollouts_{cell.regime}"
            chain.append(self._job(rollouts, (tasks, teacher), partial(self._rollouts, cell)))
            needs.append(rollouts)
        settings = describe(self._grid, cell)
        chain.append(
            Job(name=cell.name, needs=tuple(needs), settings=settings, work=partial(self._cell, cell))
        )
        return chain

    def _job(self, name: str, needs: tuple[str, ...], work: Any) -> Job:
        return Job(name=name, needs=needs, settings=self._common, work=work)

    def _data(self, folder: Path) -> Mapping[str, Any]:
        world = self._grid.world
        held_out = make_questions(world, world.num_held_out, seed=_HELD_OUT_SEED, split="held_out")
        write_tasks(folder / "held_out.jsonl", held_out)
        check = make_questions(world, world.num_check, seed=_CHECK_SEED, split="held_out")
        write_tasks(folder / "check.jsonl", check)
        start = make_questions(world, world.num_start, seed=_START_SEED, split="train")
        write_tasks(folder / "start.jsonl", start)
        make_tokenizer(world, self._grid.size.vocab_size).save_pretrained(folder / "tokenizer")
        return {"num_held_out": len(held_out), "num_check": len(check)}

    def _tasks(self, seed: int, folder: Path) -> Mapping[str, Any]:
        size = self._grid.size
        count = size.rounds * size.tasks_per_round
        tasks = make_questions(self._grid.world, count, seed=derive_seed(seed, "evidence"), split="train")
        write_tasks(folder / "train.jsonl", tasks)
        return {"num_tasks": count}

    def _supervised(self, seed: int, role: str, folder: Path) -> Mapping[str, Any]:
        """Train a model from nothing: the cold start on traces with faults, a teacher with or without."""
        kind = role.removeprefix("teacher_")
        phase = self._grid.size.student if role == "cold" else self._grid.size.teacher
        untrained, traces, run = folder / "untrained", folder / "traces.jsonl.gz", folder / "run"
        if not traces.is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(self._root / DATA / "tokenizer")
            write_untrained(phase, tokenizer, derive_seed(seed, f"{role}/weights"), untrained)
            has_faults = role == "cold" or TEACHERS[kind]
            made = make_traces(
                self._grid.world,
                phase.traces,
                seed=derive_seed(seed, role),
                has_faults=has_faults,
                tokenizer=tokenizer,
            )
            write_trajectories(traces, made)
        config = supervised_config(phase, seed=seed, untrained=untrained, traces=traces, output=run)
        checkpoint, start = self._train_to_target(config, phase)
        # The curves are drawn over the check questions, so a teacher needs a level there too.
        prefixes = {"held_out": ""} if role == "cold" else {"held_out": "", "check": "check_"}
        readings = {
            prefix + name: self._reading(checkpoint, questions, has_faults=has_faults)
            for questions, prefix in prefixes.items()
            for name, has_faults in READINGS.items()
        }
        return {"start": start, **readings}

    def _train_to_target(self, config: RunConfig, phase: Supervised) -> tuple[Path, list[float]]:
        """Train to the end, or until enough training questions are solved; tells the share at every look."""
        if phase.target is None:
            return train_on(config, self._display), []
        shares: list[float] = []
        for updates in range(phase.check_from, phase.updates + 1, phase.check_every):
            rounds = rounds_of(phase, updates)[0]
            checkpoint = train_on(
                replace(config, trainer=replace(config.trainer, rounds=rounds)), self._display
            )
            shares.append(self._reading(checkpoint, "start", has_faults=False)["success"])
            if shares[-1] >= phase.target:
                break
        return checkpoint, shares

    def _rollouts(self, cell: Cell, folder: Path) -> Mapping[str, Any]:
        """The control's data: the teacher's own rollouts, as many as the student makes elsewhere."""
        regime = self._grid.regimes[cell.regime]
        config = policy_config(
            self._grid,
            checkpoint=self._checkpoint(f"seed_{cell.seed}/teacher_{regime.teacher}"),
            questions=self._root / f"seed_{cell.seed}/tasks/train.jsonl",
            has_faults=regime.has_faults,
            seed=derive_seed(cell.seed, "control"),
            num_samples=self._grid.size.num_samples,
        )
        traces = commands.rollout(config, which="train", num_tasks=None, progress=self._display.wait)
        write_trajectories(folder / "traces.jsonl.gz", traces)
        return {"success": sum(one.is_success for one in traces) / len(traces)}

    def _rescue(self, seed: int, teacher: str, folder: Path) -> Mapping[str, Any]:
        """Who brings the cold student's states to a right answer once the tools work again."""
        cold = self._checkpoint(f"seed_{seed}/cold")
        policies = {"student": cold, "teacher": self._checkpoint(f"seed_{seed}/teacher_{teacher}")}
        questions = self._root / f"seed_{seed}/tasks/train.jsonl"
        configs = {
            name: policy_config(self._grid, checkpoint=path, questions=questions, has_faults=True, seed=seed)
            for name, path in policies.items()
        }
        return {"rescue": rescue_rates(configs, self._grid.world.num_states, self._display.wait)}

    def _guide(self, cell: Cell, folder: Path) -> Mapping[str, Any]:
        """Whether it pays to go where the teacher points, from the cold start's own attempts."""
        regime = self._grid.regimes[cell.regime]
        questions = self._root / f"seed_{cell.seed}/tasks/train.jsonl"
        config = policy_config(
            self._grid,
            checkpoint=self._checkpoint(f"seed_{cell.seed}/cold"),
            questions=questions,
            has_faults=regime.has_faults,
            seed=cell.seed,
            num_samples=self._grid.size.num_samples,
        )
        # As the weights are: at temperature 1.
        config = replace(config, rollout=replace(config.rollout, temperature=1.0))
        teacher = self._checkpoint(f"seed_{cell.seed}/teacher_{regime.teacher}")
        faults = self._faults(has_faults=regime.has_faults)
        num_tasks = 2 * self._grid.size.tasks_per_round
        return {"guide": guide_sums(config, teacher, _by_id(questions), faults, num_tasks)}

    def _cell(self, cell: Cell, folder: Path) -> Mapping[str, Any]:
        seed, regime = cell.seed, self._grid.regimes[cell.regime]
        is_sft = self._grid.methods[cell.method].algorithm["name"] == "sft"
        tasks = self._root / f"seed_{seed}/tasks/train.jsonl"
        rollouts = self._root / f"seed_{seed}/rollouts_{cell.regime}/traces.jsonl.gz"
        config = cell_config(
            self._grid,
            cell,
            cold=self._checkpoint(f"seed_{seed}/cold"),
            teacher=self._checkpoint(f"seed_{seed}/teacher_{regime.teacher}"),
            train=rollouts if is_sft else tasks,
            check=self._root / DATA / "check.jsonl",
            output=folder / "run",
        )
        checkpoint = train_on(config, self._display)
        readings = {
            name: self._reading(checkpoint, "held_out", has_faults=has_faults)
            for name, has_faults in READINGS.items()
        }
        rows = read_rows(config.run.output / "metrics.jsonl")
        curve = [
            {"round": row["round"], "success": row["eval/success_mean"]}
            for row in rows
            if row["kind"] == "eval"
        ]
        sampled = [row["rollout/success_mean"] for row in rows if row["kind"] == "round" and not is_sft]
        result = {**readings, "curve": curve, "sampled": sampled}
        if config.teacher is not None:
            faults = self._faults(has_faults=regime.has_faults)
            result["steps"] = split_steps(config.run.output, _by_id(tasks), faults)
        return result

    def _reading(self, checkpoint: Path, questions: str, *, has_faults: bool) -> Mapping[str, Any]:
        path = self._root / DATA / f"{questions}.jsonl"
        config = policy_config(self._grid, checkpoint=checkpoint, questions=path, has_faults=has_faults)
        attempts = commands.evaluate(config, self._display.wait).trajectories
        return read_attempts(attempts, _by_id(path), self._faults(has_faults=has_faults))

    def _checkpoint(self, name: str) -> Path:
        return checkpoint_of(self._root, name)

    def _faults(self, *, has_faults: bool) -> LedgerFaults:
        world = self._grid.world
        return ledger_section(world, world.num_lookups[0], has_faults=has_faults).faults


def train_on(config: RunConfig, display: PausingDisplay) -> Path:
    """Train, or go on with a run that was cut short; gives the last checkpoint."""
    is_begun = (config.run.output / CONFIG_FILE).is_file()
    return SODTrainer.from_config(config, display=display).train(resume=is_begun).checkpoint


def checkpoint_of(root: Path, name: str) -> Path:
    """Find the checkpoint that a job left below an output folder.

    Raises:
        CheckpointError: If there is none.
    """
    found = latest_checkpoint(root / name / "run" / "checkpoints")
    if found is None:
        raise CheckpointError(f"evidence: {root / name} is done but has no checkpoint; delete the folder")
    return found


def write_untrained(
    phase: Supervised, tokenizer: PreTrainedTokenizerFast, seed: int, folder: Path, max_positions: int = 1024
) -> None:
    """Write a model that has learnt nothing, with its tokenizer."""
    model = build_qwen3(
        vocab_size=len(tokenizer),
        hidden_size=phase.width,
        num_layers=phase.layers,
        num_heads=phase.heads,
        intermediate_size=3 * phase.width,
        max_positions=max_positions,
        seed=seed,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _by_id(path: Path) -> Mapping[str, Task]:
    return {task.task_id: task for task in load_tasks(path)}
