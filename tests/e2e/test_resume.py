"""`sod train` killed by SIGKILL at random points, and resumed: the run that comes out is the unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sod.checkpoint import TENSOR_FILE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
ROUNDS = 5
NUM_KILLS = 3


def environment():
    root = os.path.dirname(os.path.dirname(HERE))  # noqa: PTH120
    path = os.pathsep.join([root, HERE, os.environ.get("PYTHONPATH", "")])
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


def kill_when(process, folder, size, delay_s):
    """Send SIGKILL some moments after the records have grown to a size."""
    while num_bytes(folder) < size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    time.sleep(delay_s)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL


def test_sigkill_at_three_random_points_and_resume_is_the_unbroken_run(arithmetic, metric_rows, seeded):
    straight = arithmetic.toml("straight")
    done = run(straight)
    assert done.returncode == 0, done.stderr
    whole = arithmetic.folder / "straight"
    total = num_bytes(whole)

    broken = arithmetic.toml("broken")
    folder = arithmetic.folder / "broken"
    points = sorted(seeded.uniform(0.1, 0.9) * total for _ in range(NUM_KILLS))
    for index, point in enumerate(points):
        resume = ["--resume"] if index else []
        process = subprocess.Popen(
            command(broken, *resume),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        kill_when(process, folder, point, seeded.uniform(0.0, 0.3))
        process.stderr.close()
    done = run(broken, "--resume")
    assert done.returncode == 0, done.stderr

    for name in ("metrics.jsonl", "steps.jsonl"):
        assert metric_rows(folder / name) == metric_rows(whole / name), name
    latest = (whole / "checkpoints" / "latest").read_text().strip()
    assert (folder / "checkpoints" / "latest").read_text().strip() == latest
    for name in ("model.safetensors", "trainer_state.json", TENSOR_FILE):
        a, b = (one / "checkpoints" / latest / name for one in (whole, folder))
        if name == "trainer_state.json":
            left, right = (json.loads(path.read_text()) for path in (a, b))
            left.pop("file_bytes"), right.pop("file_bytes")
            assert left == right
        else:
            assert a.read_bytes() == b.read_bytes(), name
    starts = json.loads((folder / "env.json").read_text())["starts"]
    assert len(starts) == NUM_KILLS + 1
