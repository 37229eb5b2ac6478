"""Sizes of the end-to-end part, and the run settings that follow from them.

The regime is that of tool faults met by a teacher that has never seen one: a quarter of the right calls
fails, half of those without an error word. No run has been made at the full size; its learning rates are
carried over from far smaller models and are the first thing to look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.ledger_world import ArithmeticLedgerSection
from sod.config import (
    AdamWSection,
    CheckpointSection,
    DataSection,
    EvaluationSection,
    RolloutSection,
    RunConfig,
    RunSection,
    StudentSection,
    TrainerSection,
)
from sod.config_algorithms import AlgorithmSection, OPDSection, SFTSection, SODSection, STMSection
from sod.config_teachers import TeacherSection
from sod.demo.settings import ModelSize

METHODS: dict[str, AlgorithmSection] = {
    "opd": OPDSection(),
    "sod": SODSection(form="vocab", reward_coefficient=0.0),
    "two targets": STMSection(),
}
FAULT_RATE = 0.25
_MAX_TURNS, _MAX_TURN_TOKENS, _MAX_TRAJECTORY_TOKENS = 14, 32, 320


@dataclass(frozen=True, kw_only=True)
class E2ESize:
    """How big everything is.

    Attributes:
        vocab_size: Tokens of the tokenizer; those that the ledger does not need are fillers.
        teacher: Shape of the teacher.
        student: Shape of the student.
        num_traces: Expert traces of each supervised phase.
        supervised_rounds: Rounds of it, of ten updates each.
        supervised_minibatch: Traces of an update.
        methods: Keys of `METHODS`.
        seeds: Seeds of the students.
        rounds: Rollout batches of a method.
        tasks_per_round: Tasks of a batch, four attempts each.
        minibatch: Trajectories of an update.
        eval_every: Rounds between evaluations.
        num_questions: Held-out questions.
        learning_rate: Of a method.
        supervised_learning_rate: Of the supervised phases.
        microbatch_tokens: Tokens of a forward and backward pass.
    """

    vocab_size: int
    teacher: ModelSize
    student: ModelSize
    num_traces: int
    supervised_rounds: int
    supervised_minibatch: int
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    tasks_per_round: int
    minibatch: int
    eval_every: int
    num_questions: int
    learning_rate: float
    supervised_learning_rate: float
    microbatch_tokens: int


FULL = E2ESize(
    vocab_size=151_936,
    teacher=ModelSize(num_layers=12, hidden_size=512, num_heads=8),
    student=ModelSize(num_layers=4, hidden_size=256, num_heads=4),
    num_traces=4000,
    supervised_rounds=40,
    supervised_minibatch=64,
    methods=tuple(METHODS),
    seeds=(0, 1, 2),
    rounds=40,
    tasks_per_round=48,
    minibatch=64,
    eval_every=5,
    num_questions=200,
    learning_rate=2e-4,
    supervised_learning_rate=1e-3,
    # Logits of 2,048 tokens are 1.2 GB in float32, held several times over by each of nine processes.
    microbatch_tokens=2048,
)
"""A teacher of 119 and students of 42 million parameters, on a GPU."""

DRY = E2ESize(
    vocab_size=700,
    teacher=ModelSize(num_layers=1, hidden_size=32, num_heads=1),
    student=ModelSize(num_layers=1, hidden_size=32, num_heads=1),
    num_traces=8,
    supervised_rounds=1,
    supervised_minibatch=4,
    methods=("two targets",),
    seeds=(0,),
    rounds=1,
    tasks_per_round=2,
    minibatch=4,
    eval_every=1,
    num_questions=2,
    learning_rate=1e-3,
    supervised_learning_rate=1e-3,
    microbatch_tokens=2048,
)
"""Every step of it on a CPU; nothing is learnt."""


class E2EPaths:
    """Where everything of the part lies."""

    def __init__(self, root: Path) -> None:
        """Take its folder."""
        self.root = root
        self.train, self.held_out = root / "train.jsonl", root / "held_out.jsonl"

    def traces(self, name: str) -> Path:
        """Expert traces of "teacher" or "student"."""
        return self.root / f"{name}_traces.jsonl.gz"

    def untrained(self, name: str) -> Path:
        """Random model that a supervised run starts from."""
        return self.root / "untrained" / name

    def run(self, name: str) -> Path:
        """Run folder."""
        return self.root / "runs" / name.replace(" ", "_")

    def result(self, name: str) -> Path:
        """What a run leaves when all of it is done."""
        return self.run(name) / "result.json"


def environment_section(*, has_faults: bool) -> ArithmeticLedgerSection:
    """The world, with its faults or without."""
    rate = FAULT_RATE if has_faults else 0.0
    return ArithmeticLedgerSection(num_lookups=3, has_codes=True, fault_rate=rate, max_errors_in_a_row=4)


def supervised_config(name: str, size: E2ESize, paths: E2EPaths, *, seed: int, device: str) -> RunConfig:
    """Settings of a supervised run: the teacher on clean traces, a student on traces with faults."""
    updates = 10
    return RunConfig(
        run=RunSection(output=paths.run(name), seed=seed),
        student=StudentSection(model=str(paths.untrained(name))),
        data=DataSection(train=paths.traces("teacher" if name == "teacher" else "student")),
        algorithm=SFTSection(),
        optimizer=AdamWSection(
            learning_rate=size.supervised_learning_rate,
            warmup_updates=min(20, updates),
            schedule="linear",
            final_fraction=0.1,
        ),
        rollout=_rollout(size),
        trainer=_trainer(
            size,
            device,
            rounds=size.supervised_rounds,
            tasks=updates * size.supervised_minibatch,
            minibatch=size.supervised_minibatch,
        ),
        checkpoint=CheckpointSection(every=0, keep_last=1),
    )


def method_config(
    method: str, size: E2ESize, paths: E2EPaths, *, teacher: Path, student: Path, seed: int, device: str
) -> RunConfig:
    """Settings of one method from one cold student."""
    return RunConfig(
        run=RunSection(output=paths.run(f"{method} seed {seed}"), seed=seed),
        student=StudentSection(model=str(student)),
        teacher=TeacherSection(model=str(teacher)),
        data=DataSection(train=paths.train, eval=paths.held_out),
        environment=environment_section(has_faults=True),
        algorithm=METHODS[method],
        optimizer=AdamWSection(learning_rate=size.learning_rate, warmup_updates=10),
        rollout=_rollout(size),
        trainer=_trainer(
            size, device, rounds=size.rounds, tasks=size.tasks_per_round, minibatch=size.minibatch
        ),
        evaluation=EvaluationSection(every=size.eval_every),
        checkpoint=CheckpointSection(every=0, keep_last=1),
    )


def policy_config(
    checkpoint: Path, size: E2ESize, paths: E2EPaths, *, has_faults: bool, device: str
) -> RunConfig:
    """Settings for answering the held-out questions greedily."""
    return RunConfig(
        # Only a training run writes to its folder.
        run=RunSection(output=paths.root),
        student=StudentSection(model=str(checkpoint)),
        data=DataSection(train=paths.train, eval=paths.held_out),
        environment=environment_section(has_faults=has_faults),
        algorithm=OPDSection(),
        rollout=_rollout(size),
        trainer=_trainer(size, device, rounds=1, tasks=1, minibatch=1),
    )


def _rollout(size: E2ESize) -> RolloutSection:
    return RolloutSection(
        num_samples=4,
        max_turns=_MAX_TURNS,
        max_turn_tokens=_MAX_TURN_TOKENS,
        max_trajectory_tokens=_MAX_TRAJECTORY_TOKENS,
        temperature=0.7,
        max_batch=4 * size.tasks_per_round,
        num_tool_threads=1,
    )


def _trainer(size: E2ESize, device: str, *, rounds: int, tasks: int, minibatch: int) -> TrainerSection:
    return TrainerSection(
        rounds=rounds,
        tasks_per_round=tasks,
        minibatch_trajectories=minibatch,
        max_microbatch_tokens=size.microbatch_tokens,
        device="cuda" if device == "cuda" else "cpu",
        precision="bfloat16" if device == "cuda" else "float32",
    )
