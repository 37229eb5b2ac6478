"""A teacher and a student for the end-to-end tests, trained on the spot by the trainer itself."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from arithmetic import distil_toml, sft_toml, write_expert, write_tasks  # noqa: E402
from training_runs import trainer_of  # noqa: E402

from sod.config_file import load_config  # noqa: E402
from sod.loop.display import Display  # noqa: E402
from sod.testing import make_tiny_checkpoint  # noqa: E402
from sod.trainer import SODTrainer  # noqa: E402

transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Arithmetic:
    """Files of the task, and two checkpoints of one SFT run: the student stopped earlier."""

    folder: Path
    student: Path
    teacher: Path
    sft: Path

    def toml(self, output: str, **more: str) -> Path:
        """Write the settings of a distillation run."""
        return distil_toml(self.folder, output=output, student=self.student, teacher=self.teacher, **more)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def arithmetic(tmp_path_factory) -> Arithmetic:
    folder = tmp_path_factory.mktemp("arithmetic")
    write_expert(folder / "expert.jsonl", 64)
    write_tasks(folder / "train.jsonl", 32)
    write_tasks(folder / "eval.jsonl", 8, start=40)
    base = make_tiny_checkpoint(folder / "base", hidden_size=32, num_layers=2)
    toml = sft_toml(folder, output="sft", student=base, rounds=12, every=6)
    trainer = SODTrainer.from_config(load_config(toml), display=Display(is_quiet=True))
    trainer.train()
    checkpoints = folder / "sft" / "checkpoints"
    return Arithmetic(
        folder=folder,
        student=checkpoints / "round_00006_update_0000024",
        teacher=checkpoints / "round_00012_update_0000048",
        sft=folder / "sft",
    )


def rows(path: Path) -> list[dict]:
    """Rows of a metrics file, wall-clock readings left out."""
    lines = path.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.fixture
def metric_rows():
    return rows


@pytest.fixture
def seeded():
    return random.Random(20260517)


@pytest.fixture(scope="session")
def unbroken(arithmetic):
    """The run that every resumed one must repeat."""
    return trainer_of(arithmetic.toml("unbroken")).train()
