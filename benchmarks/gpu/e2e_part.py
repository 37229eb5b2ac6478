"""Training end to end on the ledger task with tool faults: uniform OPD, SOD and two targets.

First the teacher and the cold students in parallel, then every method from every cold student in parallel,
each in a process of its own on the one card. Curves are read from the run folders while they grow.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.job import Job, environment, say
from benchmarks.outcomes import FAILED, OK, SkippedError
from benchmarks.peers import add_to_path

if TYPE_CHECKING:
    from benchmarks.gpu.e2e_settings import E2EPaths

# What is left to read the last curves and to write them.
_STOP_BEFORE_S = 10.0
_LOOK_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model to be trained.

    Attributes:
        name: Of its run and its row.
        seed: Of weights and draws.
        method: Key of `METHODS`; None for a supervised run.
    """

    name: str
    seed: int
    method: str | None = None


def run(job: Job) -> None:
    """Train everything while there is time."""
    add_to_path(job.peers)
    try:
        from benchmarks.gpu.e2e_settings import DRY, FULL, E2EPaths
        from benchmarks.gpu.e2e_world import prepare
    except ImportError as error:
        raise SkippedError(f"The training loop cannot be imported ({error}); see docs/gpu.md.") from error
    size = DRY if job.is_dry else FULL
    started = time.monotonic()
    paths = E2EPaths(Path(tempfile.mkdtemp(prefix="sod-e2e-")))
    job.sheet.content |= {
        "size": {**vars(size), "teacher": vars(size.teacher), "student": vars(size.student)}
    }
    try:
        prepare(size, paths)
        say(f"  questions and expert traces after {time.monotonic() - started:.0f} s")
        cold = [Model(name=f"student seed {seed}", seed=seed) for seed in size.seeds]
        _train(job, paths, [Model(name="teacher", seed=100), *cold])
        ready = [student.seed for student in cold if _result(paths, student) is not None]
        if _result(paths, Model(name="teacher", seed=100)) is None or not ready:
            raise RuntimeError("No teacher or no cold student was ready in time; see the rows.")
        methods = [
            Model(name=f"{method} seed {seed}", seed=seed, method=method)
            for seed in ready
            for method in size.methods
        ]
        _train(job, paths, methods)
    finally:
        shutil.rmtree(paths.root, ignore_errors=True)


def _train(job: Job, paths: E2EPaths, models: Iterable[Model]) -> None:
    """Start all models at once and watch them until they end or the time is up."""
    running = {model: _start(job, paths, model) for model in models}
    try:
        while running and job.seconds_left() > _STOP_BEFORE_S:
            time.sleep(_LOOK_EVERY_S if not job.is_dry else 0.2)
            for model, process in list(running.items()):
                is_over = process.exitcode is not None
                job.sheet.replace([_row(job, paths, model, process)])
                if is_over:
                    del running[model]
                    say(f"  {model.name}: ended with {process.exitcode}")
    finally:
        for process in running.values():
            process.kill()
            process.join()
    for model, process in running.items():
        row = _row(job, paths, model, process)
        # What it had learnt by then stands in its curve.
        row |= {"status": OK if row["curve"] else FAILED, "reason": "It was stopped at the limit."}
        job.sheet.replace([row])


def _start(job: Job, paths: E2EPaths, model: Model) -> BaseProcess:
    """Fork a process from one that has imported the training loop, and nothing of CUDA begun."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.e2e_run"])
    paths_of_modules = environment()["PYTHONPATH"]
    os.environ |= {
        "PYTHONPATH": f"{paths_of_modules}{os.pathsep}{job.peers}",
        "TOKENIZERS_PARALLELISM": "false",
        # Nine processes, each of which would start a thread per core.
        "OMP_NUM_THREADS": "1",
    }
    arguments = (model.name, model.seed, paths.root)
    options = {"is_dry": job.is_dry, "method": model.method, "log": _log(paths, model)}
    process = context.Process(target=_run, args=arguments, kwargs=options)
    process.start()
    return process


def _run(name: str, seed: int, root: Path, *, is_dry: bool, method: str | None, log: Path) -> None:
    """Train one model, all that is said going to its log."""
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from benchmarks.gpu.e2e_run import train

    train(name, seed, root, is_dry=is_dry, method=method)


def _row(job: Job, paths: E2EPaths, model: Model, process: BaseProcess) -> dict[str, Any]:
    """What is known of a model: its curve so far, and what it can do once it has ended."""
    curve = _curve(paths, model)
    row: dict[str, Any] = {"item": model.name, "status": OK, "reason": None, "curve": curve}
    if curve:
        row |= {"success_start": curve[0]["success"], "success_end": curve[-1]["success"]}
        row |= {"updates": curve[-1]["update"]}
    result = _result(paths, model)
    if result is not None:
        row |= {key: value for key, value in result.items() if key != "checkpoint"}
    elif process.exitcode is None:
        row["reason"] = "It was still running."
    elif process.exitcode:
        said = _log(paths, model).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        row |= {
            "status": FAILED,
            "reason": f"It ended with {process.exitcode}: {(said or ['nothing'])[-1]}",
        }
    row["seconds"] = row.pop("train_s", None)
    return row


def _curve(paths: E2EPaths, model: Model) -> list[dict[str, Any]]:
    """Success on the held-out questions with faults, by round."""
    path = paths.run(model.name) / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [
        {"round": row["round"], "update": row["update"], "success": row["eval/success_mean"]}
        for row in rows
        if row["kind"] == "eval"
    ]


def _result(paths: E2EPaths, model: Model) -> dict[str, Any] | None:
    path = paths.result(model.name)
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        # Not there, or half written.
        return None
    return result


def _log(paths: E2EPaths, model: Model) -> Path:
    return paths.root / f"{model.name}.log"
