"""The reward term moves a student by itself, and nothing else does where it is left out."""

from __future__ import annotations

import copy
from statistics import fmean

import pytest

from sod.config import MuonSection, RolloutSection, RunConfig, RunSection, TrainerSection
from sod.config_algorithms import GRPOSection, OPDSection
from sod.loop.display import Display
from sod.metrics import read_rows
from sod.teacher.local import LocalTeacher
from sod.trainer import SODTrainer
from sod.types import Task

TASKS = [Task(task_id=str(n), messages=({"role": "user", "content": f"say {n}"},)) for n in range(4)]


def has_an_e(task, text):
    return float("e" in text)


def rewards(tmp_path, algorithm, model, tokenizer, teacher=None):
    config = RunConfig(
        run=RunSection(output=tmp_path / "run"),
        algorithm=algorithm,
        optimizer=MuonSection(learning_rate=1e-2, matrix_learning_rate=0.02),
        rollout=RolloutSection(num_samples=8, max_turns=1, max_turn_tokens=6, max_trajectory_tokens=64),
        trainer=TrainerSection(rounds=14, tasks_per_round=4, minibatch_trajectories=16, device="cpu"),
    )
    parts = {"tokenizer": tokenizer, "tools": [], "reward": has_an_e, "tasks": TASKS}
    SODTrainer(model, teacher, config=config, display=Display(is_quiet=True), **parts).train()
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    return [row["rollout/reward_mean"] for row in rows if row["kind"] == "round"]


def test_grpo_learns_what_is_rewarded(tmp_path, tiny_model, tiny_tokenizer):
    made = rewards(tmp_path, GRPOSection(), tiny_model, tiny_tokenizer)
    assert fmean(made[-4:]) > fmean(made[:2]) + 0.12


@pytest.mark.parametrize("form", ["vocab", "sampled"])
def test_the_reward_term_beside_a_teacher_that_is_the_student(tmp_path, tiny_model, tiny_tokenizer, form):
    """A teacher that never moves holds the student back; the reward pulls it away."""
    teacher = LocalTeacher(copy.deepcopy(tiny_model))
    section = OPDSection(form=form, reward_coefficient=5.0)
    made = rewards(tmp_path, section, tiny_model, tiny_tokenizer, teacher)
    assert fmean(made[-4:]) > fmean(made[:2]) + 0.12
