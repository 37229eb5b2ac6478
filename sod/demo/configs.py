"""The run settings of every phase: the same objects that a TOML file gives `sod train`."""

from __future__ import annotations

from pathlib import Path

from sod.config import (
    CheckpointSection,
    DataSection,
    EvaluationSection,
    RolloutSection,
    RunConfig,
    RunSection,
    StudentSection,
    TrainerSection,
)
from sod.config_algorithms import AlgorithmSection, OPDSection, SFTSection, SODSection
from sod.config_teachers import TeacherSection
from sod.demo.settings import DemoSettings, SupervisedPhase
from sod.envs.ledger_env import LedgerSection

MAX_TURNS = 9
MAX_TURN_TOKENS = 28
MAX_TRAJECTORY_TOKENS = 256
_MICROBATCH_TOKENS = 2048
_MAX_BATCH = 192


class DemoPaths:
    """Where everything of a demo lies."""

    def __init__(self, root: Path) -> None:
        """Take the demo's folder."""
        self.root = root
        self.settings = root / "demo.json"
        self.train = root / "data" / "train.jsonl"
        self.check = root / "data" / "check.jsonl"
        self.held_out = root / "data" / "held_out.jsonl"
        self.summary = root / "summary.json"
        self.table = root / "summary.md"
        self.plots = root / "plots"

    def run(self, name: str) -> Path:
        """Run folder of a phase: "teacher", "student", "opd", "sod" or "control"."""
        return self.root / name

    def traces(self, name: str) -> Path:
        """Trajectories that a supervised phase learns from."""
        return self.root / "data" / f"{name}_traces.jsonl.gz"

    def untrained(self, name: str) -> Path:
        """Random model that a supervised phase starts from."""
        return self.root / "models" / f"{name}_untrained"

    def answers(self, name: str) -> Path:
        """Greedy attempts at the held-out questions."""
        return self.root / "answers" / f"{name}.jsonl.gz"


def rollout_section(settings: DemoSettings) -> RolloutSection:
    """How models are sampled in every phase."""
    return RolloutSection(
        num_samples=1,
        max_turns=MAX_TURNS,
        max_turn_tokens=MAX_TURN_TOKENS,
        max_trajectory_tokens=MAX_TRAJECTORY_TOKENS,
        temperature=settings.distillation.temperature,
        max_batch=_MAX_BATCH,
        num_tool_threads=2,
    )


def supervised_config(
    name: str,
    phase: SupervisedPhase,
    settings: DemoSettings,
    paths: DemoPaths,
    *,
    seed: int,
    num_threads: int,
) -> RunConfig:
    """Settings of a supervised phase, "teacher" or "student"."""
    return RunConfig(
        run=RunSection(output=paths.run(name), seed=seed),
        student=StudentSection(model=str(paths.untrained(name))),
        data=DataSection(train=paths.traces(name)),
        algorithm=SFTSection(),
        optimizer=phase.optimizer,
        rollout=rollout_section(settings),
        trainer=_trainer(
            rounds=phase.rounds,
            tasks_per_round=phase.minibatch * phase.updates_per_round,
            epochs=1,
            minibatch=phase.minibatch,
            num_threads=num_threads,
        ),
        checkpoint=CheckpointSection(every=0, keep_last=1),
    )


def method_config(
    method: str,
    settings: DemoSettings,
    paths: DemoPaths,
    *,
    teacher: Path,
    student: Path,
    seed: int,
    num_threads: int,
) -> RunConfig:
    """Settings of a method; the methods differ in the algorithm and in who wrote the trajectories."""
    phase = settings.distillation
    algorithm: dict[str, AlgorithmSection] = {
        "opd": OPDSection(),
        "sod": SODSection(form="vocab", reward_coefficient=0.0),
        "control": SFTSection(),
    }
    is_control = method == "control"
    return RunConfig(
        run=RunSection(output=paths.run(method), seed=seed),
        student=StudentSection(model=str(student)),
        teacher=None if is_control else TeacherSection(model=str(teacher)),
        data=DataSection(
            train=paths.traces(method) if is_control else paths.train,
            eval=paths.held_out,
            eval_limit=settings.num_curve_questions,
        ),
        environment=LedgerSection(),
        algorithm=algorithm[method],
        optimizer=phase.optimizer,
        rollout=rollout_section(settings),
        trainer=_trainer(
            rounds=phase.rounds,
            tasks_per_round=phase.tasks_per_round,
            epochs=phase.epochs,
            minibatch=phase.minibatch,
            num_threads=num_threads,
        ),
        evaluation=EvaluationSection(every=phase.eval_every),
        checkpoint=CheckpointSection(every=0, keep_last=1),
    )


def policy_config(
    checkpoint: Path,
    settings: DemoSettings,
    paths: DemoPaths,
    *,
    questions: Path,
    seed: int,
    num_threads: int,
) -> RunConfig:
    """Settings for rolling a checkpoint out: on the training questions, or greedily on `questions`."""
    return RunConfig(
        # Only a training run writes to its folder.
        run=RunSection(output=paths.root, seed=seed),
        student=StudentSection(model=str(checkpoint)),
        data=DataSection(train=paths.train, eval=questions),
        environment=LedgerSection(),
        algorithm=OPDSection(),
        rollout=rollout_section(settings),
        trainer=_trainer(rounds=1, tasks_per_round=1, epochs=1, minibatch=1, num_threads=num_threads),
    )


def _trainer(
    *, rounds: int, tasks_per_round: int, epochs: int, minibatch: int, num_threads: int
) -> TrainerSection:
    return TrainerSection(
        rounds=rounds,
        tasks_per_round=tasks_per_round,
        epochs=epochs,
        minibatch_trajectories=minibatch,
        max_microbatch_tokens=_MICROBATCH_TOKENS,
        device="cpu",
        num_threads=num_threads,
    )
