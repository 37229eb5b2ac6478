"""Runs that are stopped at a chosen moment, and how two runs are compared."""

from __future__ import annotations

import os
import signal

from sod.config_file import load_config
from sod.loop.display import Display
from sod.trainer import SODTrainer


def trainer_of(path, *overrides, display=None):
    return SODTrainer.from_config(load_config(path, overrides), display=display or Display(is_quiet=True))


class StopAt(Display):
    """Does something at one moment of a run: the n-th report of one part."""

    def __init__(self, part, count, action):
        super().__init__(is_quiet=True)
        self._at, self._left, self._action = part, count, action

    def part(self, name, done, total, metrics=None):
        if name == self._at:
            self._left -= 1
            if self._left == 0:
                self._action()


class SimulatedCrashError(Exception):
    pass


def crash():
    raise SimulatedCrashError


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same_run(a, b, metric_rows):
    for name in ("metrics.jsonl", "steps.jsonl"):
        assert metric_rows(a.folder / name) == metric_rows(b.folder / name)
    assert a.checkpoint.name == b.checkpoint.name
    names = sorted(entry.name for entry in a.checkpoint.iterdir())
    assert names == sorted(entry.name for entry in b.checkpoint.iterdir())
    assert (a.checkpoint / "model.safetensors").read_bytes() == (
        b.checkpoint / "model.safetensors"
    ).read_bytes()
