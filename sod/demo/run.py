"""The first run, end to end: every phase goes through the ordinary trainer and its run folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from sod import commands
from sod.config import RunConfig
from sod.data import write_tasks
from sod.demo.configs import MAX_TRAJECTORY_TOKENS, DemoPaths, method_config, policy_config, supervised_config
from sod.demo.expert_data import expert_traces
from sod.demo.figures import draw_figures
from sod.demo.progress import Show
from sod.demo.settings import METHODS, DemoSettings, SupervisedPhase
from sod.demo.summary import Reading, reading_of, step_table, summary_table, to_json, verdict
from sod.demo.tokenizer import ledger_tokenizer
from sod.envs.ledger import ledger_tasks
from sod.errors import ConfigError
from sod.loop.display import Display
from sod.loop.result import TrainResult
from sod.metrics import read_rows
from sod.models import build_qwen3
from sod.rollout.store import write_trajectories
from sod.seeding import derive_seed
from sod.trainer import SODTrainer

TEACHER = "teacher"
BASELINE = "cold student"
TITLES = {
    "teacher": TEACHER,
    "student": BASELINE,
    "opd": "OPD",
    "sod": "SOD",
    "control": "control (SFT)",
}
"""Names of the models in the table."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What a demo measured.

    Attributes:
        folder: Everything it wrote.
        readings: One per model, in the order of the table.
        seconds: Wall-clock time of it all.
    """

    folder: Path
    readings: tuple[Reading, ...]
    seconds: float


def run_demo(
    settings: DemoSettings,
    *,
    output: Path,
    seed: int = 0,
    num_threads: int = 2,
    methods: Sequence[str] = METHODS,
    overwrite: bool = False,
    console: Console | None = None,
) -> DemoResult:
    """Runs the whole demo.

    Args:
        settings: Its size, `FULL` or `QUICK`.
        output: Folder to write; must be new or empty.
        seed: Everything random follows from it, questions included.
        num_threads: CPU threads of torch.
        methods: Which of `METHODS` to run after the cold start.
        overwrite: Delete an earlier demo in `output` first.
        console: Where progress and results go; None for stderr.

    Returns:
        The readings and the folder.

    Raises:
        ConfigError: If a method is unknown or `output` holds something that may not be deleted.
        SodError: Whatever stops a phase.
    """
    if not methods or any(method not in METHODS for method in methods):
        raise ConfigError(
            f"run_demo: methods are {', '.join(methods) or 'none'}; choose at least one of"
            f" {', '.join(METHODS)}."
        )
    paths = DemoPaths(output)
    _prepare_folder(paths, overwrite=overwrite)
    torch.set_num_threads(num_threads)
    # Bars for writing a model of a megabyte would hide the demo's own.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    show = Show(console or Console(stderr=True), num_phases=4 + len(methods))
    kept = {"seed": seed, "num_threads": num_threads, "methods": list(methods), **asdict(settings)}
    paths.settings.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    demo = Demo(settings, paths, seed=seed, num_threads=num_threads, show=show)
    demo.prepare()
    teacher, teacher_reading = demo.supervised("teacher", settings.teacher)
    student, student_reading = demo.supervised("student", settings.student)
    trained = [demo.method(name, teacher=teacher, student=student) for name in methods]
    readings = (teacher_reading, student_reading, *trained)
    _report(readings, paths, methods, show)
    return DemoResult(folder=output, readings=readings, seconds=show.seconds)


class Demo:
    """The phases of one demo, in the order in which they run."""

    def __init__(
        self, settings: DemoSettings, paths: DemoPaths, *, seed: int, num_threads: int, show: Show
    ) -> None:
        """Take settings and folder.

        Args:
            settings: The size of everything.
            paths: The folder.
            seed: Root seed.
            num_threads: CPU threads of torch.
            show: Progress.
        """
        self._settings, self._paths, self._seed, self._num_threads = settings, paths, seed, num_threads
        self._show = show
        self._tokenizer = ledger_tokenizer(settings.vocab_size)

    def prepare(self) -> None:
        """Write the questions, and the expert's traces for the teacher and for the student."""
        self._show.heading("tokenizer, questions and expert traces")
        settings = self._settings
        held_out = ledger_tasks(settings.num_questions, seed=self._seed, split="held_out")
        write_tasks(self._paths.held_out, held_out)
        check = ledger_tasks(settings.num_check_questions, seed=self._seed_of("check"))
        write_tasks(self._paths.check, check)
        num_tasks = settings.distillation.num_trajectories
        write_tasks(self._paths.train, ledger_tasks(num_tasks, seed=self._seed_of("train")))
        for name, phase in (("teacher", settings.teacher), ("student", settings.student)):
            with self._show.bar(f"{phase.num_traces} expert traces for the {name}") as progress:
                traces = expert_traces(
                    phase.num_traces,
                    seed=self._seed_of(f"{name} traces"),
                    error_rate=phase.error_rate,
                    tokenizer=self._tokenizer,
                    progress=progress,
                )
            write_trajectories(self._paths.traces(name), traces)

    def supervised(self, name: str, phase: SupervisedPhase) -> tuple[Path, Reading]:
        """Train a fresh model on expert traces.

        Args:
            name: "teacher" or "student".
            phase: Its size and settings.

        Returns:
            Its checkpoint, and how it does on the held-out questions.
        """
        start = self._paths.untrained(name)
        model = build_qwen3(
            vocab_size=len(self._tokenizer),
            hidden_size=phase.size.hidden_size,
            num_layers=phase.size.num_layers,
            num_heads=phase.size.num_heads,
            intermediate_size=3 * phase.size.hidden_size,
            max_positions=2 * MAX_TRAJECTORY_TOKENS,
            seed=self._seed_of(f"{name} weights"),
            eos_id=self._tokenizer.eos_token_id,
            pad_id=self._tokenizer.pad_token_id,
        )
        model.save_pretrained(start)
        self._tokenizer.save_pretrained(start)
        config = supervised_config(
            name, phase, self._settings, self._paths, seed=self._seed, num_threads=self._num_threads
        )
        title = TITLES[name]
        limit = "" if phase.target_success is None else "at most "
        self._show.heading(
            f"{title}: {model.num_parameters():,} parameters, {limit}{config.num_updates} updates"
        )
        started = time.perf_counter()
        if phase.target_success is None:
            return self._finish(config, title, self._train(config), started=started)
        for rounds in range(1, phase.rounds + 1):
            config = replace(config, trainer=replace(config.trainer, rounds=rounds))
            result = self._train(config, resume=rounds > 1)
            with self._show.bar("training questions") as progress:
                solved = commands.evaluate(self._policy(result.checkpoint, self._paths.check), progress)
            self._show.line(
                f"{100 * solved.success_mean:.0f}% of {self._settings.num_check_questions} training questions"
                f" solved; the cold start ends at {100 * phase.target_success:.0f}%"
            )
            if solved.success_mean >= phase.target_success:
                break
        return self._finish(config, title, result, started=started)

    def method(self, name: str, *, teacher: Path, student: Path) -> Reading:
        """Train the cold student with one method.

        Args:
            name: One of `METHODS`.
            teacher: Checkpoint of the teacher.
            student: Checkpoint of the cold student.

        Returns:
            How the trained student does on the held-out questions.
        """
        config = method_config(
            name,
            self._settings,
            self._paths,
            teacher=teacher,
            student=student,
            seed=self._seed,
            num_threads=self._num_threads,
        )
        phase = self._settings.distillation
        self._show.heading(f"{TITLES[name]}: {phase.rounds} rounds of {phase.tasks_per_round} trajectories")
        started = time.perf_counter()
        if name == "control":
            with self._show.bar("the teacher's own rollouts") as progress:
                policy = self._policy(teacher, self._paths.held_out)
                traces = commands.rollout(policy, which="train", num_tasks=None, progress=progress)
            write_trajectories(self._paths.traces(name), traces)
        return self._finish(config, TITLES[name], self._train(config), started=started)[1]

    def _train(self, config: RunConfig, *, resume: bool = False) -> TrainResult:
        return SODTrainer.from_config(config, display=Display(self._show.console)).train(resume=resume)

    def _finish(
        self, config: RunConfig, title: str, result: TrainResult, *, started: float
    ) -> tuple[Path, Reading]:
        seconds = time.perf_counter() - started
        with self._show.bar("held-out questions") as progress:
            policy = self._policy(result.checkpoint, self._paths.held_out)
            answers = commands.evaluate(policy, progress).trajectories
        write_trajectories(self._paths.answers(config.run.output.name), answers)
        is_on_policy = config.teacher is not None
        reading = reading_of(
            title,
            answers,
            sampled_success=result.metrics["rollout/success_mean"] if is_on_policy else None,
            num_updates=config.num_updates,
            seconds=seconds,
        )
        self._show.line(
            f"{title}: {100 * reading.success:.1f} ± {100 * reading.success_error:.1f}% of {len(answers)}"
            f" held-out questions solved, after {seconds:.0f} s of training"
        )
        return result.checkpoint, reading

    def _policy(self, checkpoint: Path, questions: Path) -> RunConfig:
        return policy_config(
            checkpoint,
            self._settings,
            self._paths,
            questions=questions,
            seed=self._seed,
            num_threads=self._num_threads,
        )

    def _seed_of(self, purpose: str) -> int:
        return derive_seed(self._seed, purpose)


def _prepare_folder(paths: DemoPaths, *, overwrite: bool) -> None:
    root = paths.root
    if root.exists() and not root.is_dir():
        raise ConfigError(f"demo: output {root} is a file; give a folder that is new or empty.")
    if root.is_dir() and any(root.iterdir()):
        if not paths.settings.is_file():
            raise ConfigError(
                f"demo: output {root} holds files that no demo wrote; give a folder that is new or empty."
            )
        if not overwrite:
            raise ConfigError(
                f"demo: output {root} holds an earlier demo; add --overwrite to delete it, or give another"
                " folder with --output."
            )
        shutil.rmtree(root)
    for folder in (root, root / "data", root / "answers"):
        folder.mkdir(parents=True, exist_ok=True)


def _report(readings: Sequence[Reading], paths: DemoPaths, methods: Sequence[str], show: Show) -> None:
    show.heading("results")
    titles = [TITLES[method] for method in methods]
    figures = draw_figures(paths, {method: TITLES[method] for method in methods}, readings[0].success)
    table = summary_table(readings, baseline=BASELINE)
    sentences = verdict(readings, baseline=BASELINE, methods=titles)
    kept = {**to_json(readings, baseline=BASELINE, methods=titles), "seconds": show.seconds}
    paths.summary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    parts = [table, "\n".join(f"- {sentence}" for sentence in sentences)]
    for method in methods:
        rounds = [row for row in read_rows(paths.run(method) / "metrics.jsonl") if row["kind"] == "round"]
        if method != "control":
            parts.append(step_table(TITLES[method], rounds[0], rounds[-1]))
    text = "\n\n".join(parts) + "\n"
    paths.table.write_text(text, encoding="utf-8")
    show.line(text)
    show.line("Plots: " + ", ".join(str(path) for path in figures))
    show.line(f"Everything is in {paths.root}; it took {show.seconds:.0f} s.")
