"""The command line: `sod doctor | train | eval | rollout | score | replay | tasks | demo`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from sod.errors import ConfigError, SodError

if TYPE_CHECKING:
    from sod.doctor import Finding

EXIT_FATAL_FINDING = 1
EXIT_ERROR = 2
TRACEBACK_VARIABLE = "SOD_TRACEBACK"

app = typer.Typer(
    name="sod",
    help="Step-wise on-policy distillation of tool-using agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="RUN.TOML", help="Settings of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Override a setting, its value as in TOML. Repeatable."
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Checkpoint folder to take the student from, in place of [student] model."),
]


class Split(StrEnum):
    """Which task file."""

    TRAIN = "train"
    EVAL = "eval"


class StepDivergence(StrEnum):
    """What a step's divergence averages."""

    ABS_LOG_RATIO = "abs_log_ratio"
    KL = "kl"


@app.callback()
def root(
    show_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of an error (or set SOD_TRACEBACK=1).")
    ] = False,
) -> None:
    """Step-wise on-policy distillation of tool-using agents."""
    if show_traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"


@app.command()
def train(
    config: ConfigPath,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in [run] output.")
    ] = False,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Examine run and folder as doctor does, without the hub, and stop."),
    ] = False,
    is_quiet: Annotated[bool, typer.Option("--quiet", help="Show warnings only.")] = False,
) -> None:
    """Train a student: roll it out, score its steps with the teacher, update it.

    Ctrl-C or SIGTERM finishes the current update, writes a checkpoint and stops; --resume goes on from there
    as if nothing had happened.
    """
    with errors_reported():
        from sod.config_file import load_config
        from sod.doctor import examine_folder, examine_run
        from sod.loop.display import Display
        from sod.loop.signals import StopRequested
        from sod.run_folder import check_folder
        from sod.trainer import SODTrainer

        settings = load_config(config, overrides or [])
        if dry_run:
            _show([*examine_folder(settings, resume=resume), *examine_run(settings, is_offline=True)])
            return
        check_folder(settings, resume=resume)
        trainer = SODTrainer.from_config(settings, display=Display(is_quiet=is_quiet))
        try:
            result = trainer.train(resume=resume)
        except StopRequested as stop:
            again = " ".join(f"--set {shlex.quote(one)}" for one in overrides or [])
            name = signal.Signals(stop.signal_number).name
            typer.echo(
                f"{name}: stopped after update {trainer.state.update} of {settings.num_updates}; go on with: "
                f"sod train {config} --resume {again}".rstrip(),
                err=True,
            )
            raise typer.Exit(128 + stop.signal_number) from None
        typer.echo(f"finished: {result.checkpoint}")


@app.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN.TOML]", help="Settings of a run; without it only this machine."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the findings to this JSON file too.")] = None,
    overrides: Overrides = None,
) -> None:
    """Find what would go wrong in a run before it is started; no weights are read.

    Leaves with code 1 where a finding is fatal: the run would fail, or train on something wrong.
    """
    with errors_reported():
        from sod.config_file import load_config
        from sod.doctor import diagnose, examine_machine

        if config is None and overrides:
            raise ConfigError("sod doctor: --set changes the settings of a run; give its TOML file too")
        findings = examine_machine() if config is None else diagnose(load_config(config, overrides or []))
        if output is not None:
            output.write_text(findings.to_json(), encoding="utf-8")
        _show(findings)


@app.command("eval")
def evaluate(
    config: ConfigPath,
    checkpoint: Checkpoint = None,
    output: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file too.")] = None,
    attempts: Annotated[
        Path | None,
        typer.Option(help="Folder for the attempts; an evaluation that was cut short goes on from there."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Evaluate a student on the held-out tasks ([data] eval), sampled as [evaluation] says."""
    with errors_reported():
        from sod import commands
        from sod.config_file import load_config

        settings = commands.with_checkpoint(load_config(config, overrides or []), checkpoint)
        with _bar("evaluation") as report:
            result = commands.evaluate(settings, report, attempts=attempts)
        table = Table("metric", "value")
        for key, value in result.metrics.items():
            table.add_row(key, f"{value:.4g}")
        Console().print(table)
        if output is not None:
            output.write_text(json.dumps(result.metrics, indent=1) + "\n", encoding="utf-8")


@app.command()
def rollout(
    config: ConfigPath,
    output: Annotated[Path, typer.Option(help="Trajectories file to write, .jsonl.gz.")],
    checkpoint: Checkpoint = None,
    split: Annotated[Split, typer.Option(help="Which task file of [data].")] = Split.TRAIN,
    num_tasks: Annotated[int | None, typer.Option(min=1, help="Tasks from the top; all without it.")] = None,
    overrides: Overrides = None,
) -> None:
    """Roll a student out, sampled as [rollout] says, and write the trajectories with their token ids."""
    with errors_reported():
        from sod import commands
        from sod.config_file import load_config
        from sod.evaluate import rollout_metrics
        from sod.rollout.store import write_trajectories

        settings = commands.with_checkpoint(load_config(config, overrides or []), checkpoint)
        which: Literal["train", "eval"] = "train" if split is Split.TRAIN else "eval"
        with _bar("rollout") as report:
            trajectories = commands.rollout(settings, which=which, num_tasks=num_tasks, progress=report)
        write_trajectories(output, trajectories)
        numbers = rollout_metrics(trajectories)
        typer.echo(
            f"{len(trajectories)} trajectories, success {numbers['rollout/success_mean']:.3f}, "
            f"{numbers['rollout/errors_per_trajectory']:.2f} errors per trajectory: {output}"
        )


@app.command()
def score(
    trajectories: Annotated[Path, typer.Argument(metavar="FILE", help="Trajectories file, .jsonl.gz.")],
    student: Annotated[str, typer.Option(help="Checkpoint folder or hub name of the student.")],
    teacher: Annotated[str, typer.Option(help="Checkpoint folder or hub name of the teacher.")],
    output: Annotated[Path | None, typer.Option(help="Write one JSON line per step here.")] = None,
    delta: Annotated[float, typer.Option(help="A step weight is at most 1 + delta.")] = 0.2,
    epsilon: Annotated[float, typer.Option(help="Added to both divergences of a weight, in nats.")] = 1e-6,
    step_divergence: Annotated[
        StepDivergence, typer.Option(help="What a step's divergence averages.")
    ] = StepDivergence.ABS_LOG_RATIO,
) -> None:
    """Score the steps of trajectories: how far student and teacher are apart, and SOD's weights."""
    with errors_reported():
        from sod import commands
        from sod.config_algorithms import SODSection

        kind: Literal["abs_log_ratio", "kl"] = (
            "kl" if step_divergence is StepDivergence.KL else "abs_log_ratio"
        )
        section = SODSection(
            form="vocab", reward_coefficient=0.0, delta=delta, epsilon=epsilon, step_divergence=kind
        )
        rows = commands.score(student, teacher, trajectories, section=section)
        table = Table("step", "number", "divergence (nats)", "weight")
        for turn, count, divergence, weight in commands.step_summary(rows):
            table.add_row(str(turn + 1), str(count), f"{divergence:.4f}", f"{weight:.4f}")
        Console().print(table)
        if output is not None:
            output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option(help="Folder of the replay, new or empty.")],
    overrides: Overrides = None,
    is_quiet: Annotated[bool, typer.Option("--quiet", help="Show warnings only.")] = False,
) -> None:
    """Make a run again from its stored trajectories: the same turns, today's tools, teacher and code.

    Says whether every number of every update is that of the run, or where the first is not. With other
    settings (--set) the student moves elsewhere, and what is stored is not its own any more after the first
    round: the alignment check stops there unless trainer.alignment_bound=inf says that this is meant.
    """
    with errors_reported():
        from sod.loop.display import Display
        from sod.loop.signals import StopRequested
        from sod.replay import first_difference, replay_config
        from sod.run_folder import CONFIG_FILE
        from sod.trainer import SODTrainer

        settings = replay_config(run, output, overrides or [])
        try:
            SODTrainer.from_config(settings, display=Display(is_quiet=is_quiet)).train()
        except StopRequested as stop:
            again = f"sod train {settings.run.output / CONFIG_FILE} --resume"
            typer.echo(f"{signal.Signals(stop.signal_number).name}: stopped; go on with: {again}", err=True)
            raise typer.Exit(128 + stop.signal_number) from None
        difference = first_difference(run, settings.run.output)
        same = f"every number of {settings.num_updates} updates is that of {run}"
        typer.echo(same if difference is None else f"differs from {run} first in {difference}")


@app.command()
def tasks(
    config: ConfigPath,
    output: Annotated[Path, typer.Option(help="File to write, .jsonl.")],
    num_tasks: Annotated[int, typer.Option(min=1, help="How many.")],
    split: Annotated[str, typer.Option(help="Split, as the environment names them.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the set of tasks.")] = 0,
    first: Annotated[int, typer.Option(min=0, help="Index of the first task in the set.")] = 0,
    is_expert: Annotated[
        bool, typer.Option("--expert", help="Write the expert's conversations, for sft, in place of tasks.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Make tasks for [environment], or the conversations of its expert with them."""
    with errors_reported():
        from sod import task_files
        from sod.config_file import load_config
        from sod.envs.registry import TaskRequest
        from sod.errors import ConfigError

        settings = load_config(config, overrides or [])
        if settings.environment is None:
            raise ConfigError("section [environment] is missing; it says whose tasks are made")
        request = TaskRequest(num_tasks=num_tasks, seed=seed, split=split, first=first)
        if is_expert:
            max_turns = settings.rollout.max_turns
            task_files.write_expert_file(settings.environment, request, output, max_turns=max_turns)
        else:
            task_files.write_task_file(settings.environment, request, output)
        typer.echo(f"{num_tasks} {'conversations' if is_expert else 'tasks'}: {output}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="A new or empty folder.")] = Path("runs/demo"),
    is_quick: Annotated[bool, typer.Option("--quick", help="Too small to claim anything.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Root seed.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; 1 on a busy machine.")] = 2,
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "opd,sod,control",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete an earlier demo there.")] = False,
) -> None:
    """Distil a tool-using agent from nothing on a CPU, in minutes, and compare the methods."""
    with errors_reported():
        from sod.demo.run import run_demo
        from sod.demo.settings import FULL, QUICK
        from sod.loop.signals import StopRequested

        try:
            run_demo(
                QUICK if is_quick else FULL,
                output=output,
                seed=seed,
                num_threads=threads,
                methods=[name.strip() for name in methods.split(",") if name.strip()],
                overwrite=overwrite,
            )
        except StopRequested as stop:
            name = signal.Signals(stop.signal_number).name
            typer.echo(f"{name}: the demo was stopped; start it again with --overwrite", err=True)
            raise typer.Exit(128 + stop.signal_number) from None


@contextmanager
def errors_reported() -> Iterator[None]:
    """Print an error of the SodError tree as one message and leave with code 2."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except SodError as error:
        if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_ERROR) from None


def main() -> None:
    """Run the command line."""
    app()


def _show(findings: Sequence[Finding]) -> None:
    styles = {"ok": "green", "note": "cyan", "warning": "yellow", "fatal": "bold red"}
    table = Table("part", "what", "", "finding")
    for each in findings:
        table.add_row(each.area, each.subject, f"[{styles[each.level]}]{each.level}[/]", escape(each.text))
    Console().print(table)
    if any(each.level == "fatal" for each in findings):
        raise typer.Exit(EXIT_FATAL_FINDING)


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
