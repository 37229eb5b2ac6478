"""How big the demo is: the whole one, and a quick one that only proves that every part works."""

from __future__ import annotations

from dataclasses import dataclass

from sod.config import MuonSection

METHODS: tuple[str, ...] = ("opd", "sod", "control")
"""What is trained from the cold start: on-policy distillation, its step-weighted form, and the control
(supervised training on the teacher's own rollouts, as many sequences and updates)."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Shape of a model of the Qwen3 architecture with tied embeddings.

    Attributes:
        num_layers: Decoder layers.
        hidden_size: Width.
        num_heads: Attention heads.
    """

    num_layers: int
    hidden_size: int
    num_heads: int


@dataclass(frozen=True, kw_only=True)
class SupervisedPhase:
    """Training on expert traces.

    Attributes:
        size: The model.
        num_traces: Different traces.
        error_rate: Chance of a mistake before each right call.
        num_updates: Optimiser updates, at most.
        minibatch: Traces per update.
        updates_per_round: Updates of one round of the trainer.
        target_success: Share of training questions, answered greedily, at which training stops early; None
            trains to the end. It makes a start of about the same strength from every seed: such a small
            model learns to look the right cell up all of a sudden, and when is a matter of luck.
    """

    size: ModelSize
    num_traces: int
    error_rate: float
    num_updates: int
    minibatch: int
    updates_per_round: int
    target_success: float | None = None

    @property
    def rounds(self) -> int:
        """Rounds of the trainer, at most."""
        return self.num_updates // self.updates_per_round

    @property
    def optimizer(self) -> MuonSection:
        """Muon learns these tiny models about three times as fast as AdamW alone."""
        return MuonSection(
            matrix_learning_rate=0.02,
            learning_rate=3e-3,
            beta2=0.95,
            weight_decay=0.0,
            warmup_updates=min(20, self.num_updates // 4),
            # A schedule needs an end that is known beforehand.
            schedule="linear" if self.target_success is None else "constant",
            final_fraction=0.1 if self.target_success is None else 0.0,
        )


@dataclass(frozen=True, kw_only=True)
class DistillationPhase:
    """Training from the cold start, the same for every method.

    Attributes:
        rounds: Rollout batches.
        tasks_per_round: Trajectories of one batch.
        minibatch: Trajectories per update.
        epochs: Times a batch is gone through.
        temperature: Of the rollouts. Low, because the sampled behaviour of a barely trained model is far
            worse than its greedy one: at 0.7 nearly every trajectory ends in errors.
        eval_every: Rounds between evaluations.
    """

    rounds: int
    tasks_per_round: int
    minibatch: int
    epochs: int
    temperature: float
    eval_every: int

    @property
    def num_trajectories(self) -> int:
        """Trajectories of the whole phase, each on a question of its own."""
        return self.rounds * self.tasks_per_round

    @property
    def num_updates(self) -> int:
        """Optimiser updates of the whole phase."""
        return self.rounds * self.epochs * -(-self.tasks_per_round // self.minibatch)

    @property
    def optimizer(self) -> MuonSection:
        """Half the rate of the supervised phases: more makes the student lose what it can do."""
        return MuonSection(
            matrix_learning_rate=0.01,
            learning_rate=2e-3,
            beta2=0.95,
            weight_decay=0.0,
            warmup_updates=self.num_updates // 4,
            schedule="linear",
            final_fraction=0.2,
        )


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Everything that decides what the demo does, apart from its seed.

    Attributes:
        vocab_size: Tokens of the tokenizer.
        teacher: How the teacher is made.
        student: How the cold student is made.
        distillation: What follows from the cold student.
        num_questions: Held-out questions of the table before and after.
        num_curve_questions: Of these, the ones that the curves are drawn from.
        num_check_questions: Training questions that `target_success` is read on.
    """

    vocab_size: int
    teacher: SupervisedPhase
    student: SupervisedPhase
    distillation: DistillationPhase
    num_questions: int
    num_curve_questions: int
    num_check_questions: int


FULL = DemoSettings(
    vocab_size=640,
    teacher=SupervisedPhase(
        size=ModelSize(num_layers=3, hidden_size=96, num_heads=3),
        num_traces=3000,
        error_rate=0.12,
        num_updates=160,
        minibatch=64,
        updates_per_round=16,
    ),
    student=SupervisedPhase(
        size=ModelSize(num_layers=2, hidden_size=96, num_heads=3),
        num_traces=1000,
        error_rate=0.0,
        num_updates=280,
        minibatch=32,
        updates_per_round=20,
        target_success=0.55,
    ),
    distillation=DistillationPhase(
        rounds=10, tasks_per_round=192, minibatch=32, epochs=2, temperature=0.3, eval_every=2
    ),
    num_questions=400,
    num_curve_questions=200,
    num_check_questions=100,
)
"""The demo: minutes on two cores."""

QUICK = DemoSettings(
    vocab_size=640,
    teacher=SupervisedPhase(
        size=ModelSize(num_layers=2, hidden_size=32, num_heads=1),
        num_traces=64,
        error_rate=0.12,
        num_updates=8,
        minibatch=16,
        updates_per_round=4,
    ),
    student=SupervisedPhase(
        size=ModelSize(num_layers=2, hidden_size=32, num_heads=1),
        num_traces=32,
        error_rate=0.0,
        num_updates=8,
        minibatch=16,
        updates_per_round=4,
        target_success=0.5,
    ),
    distillation=DistillationPhase(
        rounds=2, tasks_per_round=16, minibatch=8, epochs=1, temperature=0.7, eval_every=1
    ),
    num_questions=16,
    num_curve_questions=8,
    num_check_questions=8,
)
"""Every phase in a minute; its models learn nothing worth a claim."""
