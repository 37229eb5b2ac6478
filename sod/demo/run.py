"""The first run, end to end: every phase goes through the ordinary trainer and its run folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from rich.console import Console

from sod.assembly import make_renderer
from sod.config import RunConfig, StudentSection
from sod.demo.configs import MAX_TRAJECTORY_TOKENS, DemoPaths, method_config, supervised_config
from sod.demo.expert_data import expert_traces, write_tasks
from sod.demo.figures import draw_figures
from sod.demo.progress import Show
from sod.demo.settings import METHODS, DemoSettings, SupervisedPhase
from sod.demo.summary import Reading, reading_of, summary_table, to_json, verdict
from sod.demo.tokenizer import ledger_tokenizer
from sod.engines.hf import HFEngine
from sod.envs.ledger import ledger_tasks
from sod.envs.ledger_env import LedgerSection
from sod.envs.registry import build_environment
from sod.errors import ConfigError
from sod.loop.display import Display
from sod.loop.sampling import Sampler
from sod.models import build_qwen3, load_model
from sod.rollout.store import write_trajectories
from sod.seeding import derive_seed
from sod.tools import ToolRunner
from sod.trainer import SODTrainer
from sod.types import Task

TEACHER = "teacher"
BASELINE = "cold student"
TITLES = {"opd": "OPD", "sod": "SOD", "control": "control (SFT)"}
"""Names of the trained students in the table."""


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
    show = Show(console or Console(stderr=True), num_phases=4 + len(methods))
    kept = {"seed": seed, "num_threads": num_threads, "methods": list(methods), **asdict(settings)}
    paths.settings.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    with Demo(settings, paths, seed=seed, num_threads=num_threads, show=show) as demo:
        demo.prepare()
        teacher, teacher_reading = demo.supervised("teacher", settings.teacher)
        student, student_reading = demo.supervised("student", settings.student)
        trained = [demo.method(name, teacher=teacher, student=student) for name in methods]
    readings = (teacher_reading, student_reading, *trained)
    _report(readings, paths, methods, show)
    return DemoResult(folder=output, readings=readings, seconds=show.seconds)


class Demo:
    """The phases, and what they share: folder, tokenizer, environment, tool runner."""

    def __init__(
        self, settings: DemoSettings, paths: DemoPaths, *, seed: int, num_threads: int, show: Show
    ) -> None:
        """Start the environment; use as a context manager."""
        self._settings, self._paths, self._seed, self._num_threads = settings, paths, seed, num_threads
        self._show = show
        self._stack = ExitStack()
        self._environment = build_environment(LedgerSection())
        self._stack.callback(self._environment.close)
        self._runner = self._stack.enter_context(ToolRunner(max_workers=2))
        self._tokenizer = ledger_tokenizer(settings.vocab_size)
        self._renderer = make_renderer(self._tokenizer, self._environment, None)
        self._questions: list[Task] = []
        self._train_tasks: list[Task] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def prepare(self) -> None:
        """Write the questions, and the expert's traces for the teacher and for the student."""
        settings = self._settings
        self._show.heading("questions and expert traces")
        self._questions = ledger_tasks(settings.num_questions, seed=self._seed, split="held_out")
        self._train_tasks = ledger_tasks(settings.distillation.num_trajectories, seed=self._seed_of("train"))
        write_tasks(self._paths.held_out, self._questions)
        write_tasks(self._paths.train, self._train_tasks)
        for name, part in (("teacher", settings.teacher), ("student", settings.student)):
            with self._show.bar(f"expert traces for the {name}") as progress:
                traces = expert_traces(
                    part.num_traces,
                    seed=self._seed_of(f"{name} traces"),
                    error_rate=part.error_rate,
                    tokenizer=self._tokenizer,
                    renderer=self._renderer,
                    environment=self._environment,
                    runner=self._runner,
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
        return self._train(config, {"teacher": TEACHER, "student": BASELINE}[name])

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
        started = time.perf_counter()
        if name == "control":
            self._write_control_traces(teacher, config)
        return self._train(config, TITLES[name], started=started)[1]

    def _write_control_traces(self, teacher: Path, config: RunConfig) -> None:
        with self._show.bar("the teacher's own rollouts") as progress:
            traces = self._sampler(teacher, config).rollout(self._train_tasks, 0, progress)
        write_trajectories(self._paths.traces("control"), traces)

    def _train(self, config: RunConfig, title: str, *, started: float | None = None) -> tuple[Path, Reading]:
        started = time.perf_counter() if started is None else started
        self._show.heading(f"{title}: {config.num_updates} updates")
        result = SODTrainer.from_config(config, display=Display(self._show.console)).train()
        seconds = time.perf_counter() - started
        with self._show.bar("held-out questions") as progress:
            answered = self._sampler(result.checkpoint, config).evaluate(self._questions, 0, progress)
        write_trajectories(self._paths.answers(config.run.output.name), answered.trajectories)
        reading = reading_of(
            title,
            answered.trajectories,
            sampled_success=None if config.teacher is None else result.metrics["rollout/success_mean"],
            num_updates=config.num_updates,
            seconds=seconds,
        )
        self._show.line(
            f"{title}: {100 * reading.success:.1f} ± {100 * reading.success_error:.1f}% of"
            f" {len(self._questions)} held-out questions solved, in {seconds:.0f} s of training"
        )
        return result.checkpoint, reading

    def _sampler(self, checkpoint: Path, config: RunConfig) -> Sampler:
        model = load_model(StudentSection(model=str(checkpoint)))
        return Sampler(
            engine=HFEngine(model, pad_id=self._renderer.pad_id, max_batch=config.rollout.max_batch),
            renderer=self._renderer,
            factory=self._environment.factory,
            runner=self._runner,
            config=config,
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
    root.mkdir(parents=True, exist_ok=True)


def _report(readings: Sequence[Reading], paths: DemoPaths, methods: Sequence[str], show: Show) -> None:
    show.heading("results")
    titles = [TITLES[method] for method in methods]
    figures = draw_figures(paths, {method: TITLES[method] for method in methods}, readings[0].success)
    table = summary_table(readings, baseline=BASELINE)
    sentences = verdict(readings, baseline=BASELINE, methods=titles)
    kept = {**to_json(readings, baseline=BASELINE, methods=titles), "seconds": show.seconds}
    paths.summary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = table + "\n\n" + "\n".join(f"- {sentence}" for sentence in sentences) + "\n"
    paths.table.write_text(text, encoding="utf-8")
    show.line(text)
    show.line("Plots: " + ", ".join(str(path) for path in figures))
    show.line(f"Everything is in {paths.root}; it took {show.seconds:.0f} s.")
