"""One model of the end-to-end part: trained, then asked the held-out questions with and without faults."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu.e2e_settings import (
    DRY,
    FULL,
    E2EPaths,
    E2ESize,
    method_config,
    policy_config,
    supervised_config,
)
from benchmarks.gpu.e2e_world import make_model
from sod import commands
from sod.loop.display import Display
from sod.trainer import SODTrainer


def train(name: str, seed: int, root: Path, *, is_dry: bool, method: str | None) -> dict[str, Any]:
    """Train one model, see what it can do, and leave that in its run folder.

    Args:
        name: Of the run: "teacher", "student seed 0", "opd seed 0".
        seed: Of weights and draws.
        root: Folder of the part.
        is_dry: Whether on the CPU at the tiny size.
        method: Key of `METHODS`; None for a supervised run.

    Returns:
        What goes into the file.
    """
    size, device, paths = DRY if is_dry else FULL, "cpu" if is_dry else "cuda", E2EPaths(root)
    started = time.monotonic()
    if method is None:
        make_model(name, size, paths, seed=seed)
        config = supervised_config(name, size, paths, seed=seed, device=device)
    else:
        folders = {key: read_result(paths, key)["checkpoint"] for key in ("teacher", f"student seed {seed}")}
        teacher, student = (Path(folder) for folder in folders.values())
        config = method_config(
            method, size, paths, teacher=teacher, student=student, seed=seed, device=device
        )
    trained = SODTrainer.from_config(config, display=Display(Console(stderr=True), is_quiet=True)).train()
    result = {
        "checkpoint": str(trained.checkpoint),
        "parameters": sum(each.numel() for each in trained.model.parameters()),
        "updates": config.num_updates,
        "train_s": time.monotonic() - started,
        **_answers(trained.checkpoint, size, paths, device),
    }
    paths.result(name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _answers(checkpoint: Path, size: E2ESize, paths: E2EPaths, device: str) -> dict[str, Any]:
    """Success on the held-out questions, with its standard error."""
    found: dict[str, Any] = {}
    for column, has_faults in (("success_end", True), ("success_clean", False)):
        policy = policy_config(checkpoint, size, paths, has_faults=has_faults, device=device)
        answers = commands.evaluate(policy)
        found |= {column: answers.success_mean, f"{column}_error": answers.success_stderr}
    return found


def read_result(paths: E2EPaths, name: str) -> dict[str, Any]:
    """Read what a run has left."""
    result: dict[str, Any] = json.loads(paths.result(name).read_text(encoding="utf-8"))
    return result
