"""`sod train` killed by SIGKILL at random points, and resumed: the run that comes out is the unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sod.checkpoint import load_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = Path(__file__).resolve().parent
ROUNDS = 5
NUM_KILLS = 3


def environment():
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def command(toml, *more):
    return [sys.executable, "-m", "sod", "train", str(toml), "--set", f"trainer.rounds={ROUNDS}", *more]


def run(toml, *more):
    return subprocess.run(
        command(toml, *more), env=environment(), capture_output=True, text=True, timeout=500
    )


def num_bytes(folder):
    """Size of what the run has recorded; it grows with every update."""
    return sum(
        (folder / name).stat().st_size
        for name in ("metrics.jsonl", "steps.jsonl")
        if (folder / name).exists()
    )


def num_starts(folder):
    """How many processes have opened the run so far."""
    path = folder / "env.json"
    return path.read_text().count('"started_at"') if path.exists() else 0


def kill_when(process, folder, starts, size, delay_s):
    """Send SIGKILL some moments after the process has opened the run and its records have reached a size."""
    while num_starts(folder) < starts or num_bytes(folder) < size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    time.sleep(delay_s)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL


def flat(value):
    """Nested states as plain values that compare bit for bit."""
    if isinstance(value, dict):
        return {key: flat(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [flat(entry) for entry in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def test_sigkill_at_three_random_points_and_resume_is_the_unbroken_run(
    without_coverage, arithmetic, metric_rows, seeded
):
    straight = arithmetic.toml("straight")
    done = run(straight)
    assert done.returncode == 0, done.stderr
    whole = arithmetic.folder / "straight"
    total = num_bytes(whole)

    broken = arithmetic.toml("broken")
    folder = arithmetic.folder / "broken"
    points = sorted(seeded.uniform(0.1, 0.8) * total for _ in range(NUM_KILLS))
    for index, point in enumerate(points):
        resume = ["--resume"] if index else []
        process = subprocess.Popen(
            command(broken, *resume),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        kill_when(process, folder, index + 1, point, seeded.uniform(0.0, 0.5))
        process.stderr.close()
    done = run(broken, "--resume")
    assert done.returncode == 0, done.stderr

    for name in ("metrics.jsonl", "steps.jsonl"):
        assert metric_rows(folder / name) == metric_rows(whole / name), name
    latest = (whole / "checkpoints" / "latest").read_text().strip()
    assert (folder / "checkpoints" / "latest").read_text().strip() == latest
    last, wanted = (one / "checkpoints" / latest for one in (folder, whole))
    assert (last / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()
    state, optimizer = load_state(last)
    wanted_state, wanted_optimizer = load_state(wanted)
    assert replace(state, file_bytes={}) == replace(wanted_state, file_bytes={})
    assert flat(optimizer) == flat(wanted_optimizer)
    starts = json.loads((folder / "env.json").read_text())["starts"]
    assert len(starts) == NUM_KILLS + 1
