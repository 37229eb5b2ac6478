"""Every setting of a run: frozen sections, a sentence with its unit under each field.

`sod.config_file` reads them from a strict TOML file; in Python they are made directly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sod.chat_templates import TemplateName
from sod.config_algorithms import ALGORITHMS, AlgorithmSection, PrivilegedSection, SODSection
from sod.config_engines import EngineSection, LockstepSection, ReplaySection, check_precision
from sod.config_environments import EnvironmentSection, settle_penalty
from sod.config_rewards import RewardSection
from sod.config_schema import Above, AtLeast, AtMost, Section
from sod.config_teachers import AnyTeacherSection, ModelSection, ReferenceSection, check_teacher
from sod.errors import ConfigError
from sod.parsing import CallFormat


@dataclass(frozen=True, kw_only=True)
class RunSection(Section):
    """Where the run lives and what seeds it."""

    section: ClassVar[str] = "run"
    output: Path
    """Run folder, created by the run; it must not hold another run."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Root of every random draw; sampling, order and initial noise are derived from it."""


@dataclass(frozen=True, kw_only=True)
class StudentSection(ModelSection):
    """The model that is trained; keep float32 weights unless memory forbids it."""

    section: ClassVar[str] = "student"
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    enable_thinking: bool | None = None
    """Passed to the chat template; None leaves the template's own default."""
    chat_template: Literal["own", TemplateName] = "own"
    """"own" is the checkpoint's; another name is ours for that family of models; see docs/tokens.md."""
    call_format: Literal["auto", CallFormat] = "auto"
    """How the student writes calls; "auto": as the environment asks, else as the template writes them."""
    history_rewrites: Literal["refuse", "fork"] = "refuse"
    """Where the template rewrites earlier turns: "refuse" stops, "fork" begins a new token sequence there."""


@dataclass(frozen=True, kw_only=True)
class DataSection(Section):
    """The task files; .jsonl, .parquet or .json."""

    section: ClassVar[str] = "data"
    train: Path
    """Training rows: tasks, or for algorithm "sft" expert conversations (or a trajectories file)."""
    expert: Path | None = None
    """Expert conversations (or a trajectories file) beside the tasks, for algorithm "gkd"."""
    eval: Path | None = None
    """Held-out tasks for evaluation; None for no evaluation."""
    prompt_column: str = "prompt"
    """Column with the question: a string or a list of chat messages."""
    answer_column: str = "answer"
    """Column with the ground truth that the reward compares to; "" where the environment needs none."""
    form: Literal[
        "plain",
        "nq",
        "triviaqa",
        "hotpotqa",
        "2wiki",
        "musique",
        "bamboogle",
        "popqa",
        "golden_answers",
        "aime",
        "math500",
        "gsm8k",
        "gpqa",
        "livecodebench",
        "open_agentrl",
    ] = "plain"
    """"plain" has the columns named above; the others are published sets with columns of their own."""
    train_limit: Annotated[int, Above(0)] | None = None
    """Number of training rows to use, from the top; None for all."""
    eval_limit: Annotated[int, Above(0)] | None = None
    """Number of evaluation rows to use, from the top; None for all."""

    def __post_init__(self) -> None:
        """Check types, ranges and that the columns are read at all."""
        super().__post_init__()
        for key, default in (("prompt_column", "prompt"), ("answer_column", "answer")):
            value = getattr(self, key)
            if self.form != "plain" and value != default:
                raise ConfigError(
                    f'[data] {key} = {value!r}: belongs to form = "plain", but form = "{self.form}" says '
                    "what the columns are; remove one of the two"
                )


@dataclass(frozen=True, kw_only=True)
class RolloutSection(Section):
    """How the student is sampled."""

    section: ClassVar[str] = "rollout"
    num_samples: Annotated[int, Above(0)] = 16
    """Trajectories per task in a round; a reward term compares them with each other."""
    max_turns: Annotated[int, Above(0)] = 16
    """Assistant turns per trajectory."""
    max_turn_tokens: Annotated[int, Above(0)] = 2048
    """Tokens sampled in one turn."""
    max_trajectory_tokens: Annotated[int, Above(0)] = 8192
    """Tokens in a sequence of a trajectory, prompt and observations included."""
    history: Literal["full", "window", "per_turn"] = "full"
    """What a turn reads: the whole growing sequence, or a prompt of its own with or without a summary."""
    history_window: Annotated[int, Above(0)] | None = None
    """Turns that the summary tells, for history = "window"."""
    temperature: Annotated[float, Above(0)] = 1.0
    """Sampling temperature of training rollouts."""
    top_p: Annotated[float, Above(0), AtMost(1)] = 1.0
    """Nucleus mass of training rollouts; below 1 the sampled distribution is not the student's."""
    max_batch: Annotated[int, Above(0)] = 256
    """Trajectories decoded at the same time."""
    num_tool_threads: Annotated[int, Above(0)] = 8
    """Tool calls run at the same time; as many environments answer at the same time."""
    tool_timeout_s: Annotated[float, Above(0)] = 30.0
    """Deadline in seconds of a call to a tool that has no deadline of its own."""
    environment_timeout_s: Annotated[float, AtLeast(0)] = 3600.0
    """Deadline in seconds of an environment's beginning and of its answer to a turn, scoring included; 0 asks
    one after the other in the training's own thread, without a deadline, for code that works in no other."""
    max_observation_chars: Annotated[int, AtLeast(64)] = 8192
    """Longest text that a tool call gives back, in characters; the middle is cut out."""

    def __post_init__(self) -> None:
        """Check types, ranges and that `history_window` is given exactly where it is read."""
        super().__post_init__()
        if self.history == "window" and self.history_window is None:
            raise ConfigError('[rollout] history_window is missing; history = "window" tells that many turns')
        if self.history != "window" and self.history_window is not None:
            raise ConfigError(
                f'[rollout] history_window = {self.history_window}: belongs to history = "window", but '
                f'history = "{self.history}"; remove one of the two'
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerBase(Section):
    """AdamW, clipping and the learning-rate schedule: what every optimiser can set."""

    section: ClassVar[str] = "optimizer"
    learning_rate: Annotated[float, Above(0)] = 1e-6
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, AtLeast(0)] = 0.01
    """Decoupled weight decay of AdamW, applied to matrices only."""
    beta1: Annotated[float, AtLeast(0), AtMost(0.9999)] = 0.9
    """Decay of AdamW's first moment."""
    beta2: Annotated[float, AtLeast(0), AtMost(0.99999)] = 0.999
    """Decay of AdamW's second moment."""
    eps: Annotated[float, Above(0)] = 1e-8
    """Added to AdamW's denominator."""
    max_grad_norm: Annotated[float, Above(0)] = 1.0
    """Norm that gradients are clipped to, over all parameters."""
    warmup_updates: Annotated[int, AtLeast(0)] = 0
    """Updates over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up until the last update."""
    final_fraction: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    """Share of the peak learning rate that the decay ends at."""

    def __post_init__(self) -> None:
        """Check types, ranges and that `final_fraction` is read at all."""
        super().__post_init__()
        if self.schedule == "constant" and self.final_fraction != 0.0:
            raise ConfigError(
                f"[optimizer] final_fraction = {self.final_fraction!r}: belongs to schedule "
                '"linear" or "cosine", but schedule = "constant"; remove one of the two'
            )


@dataclass(frozen=True, kw_only=True)
class AdamWSection(OptimizerBase):
    """AdamW for every parameter."""

    name: Literal["adamw"] = "adamw"
    """Name of the optimiser."""


@dataclass(frozen=True, kw_only=True)
class MuonSection(OptimizerBase):
    """Muon for the matrices inside the layers, AdamW for embeddings, head, norms and biases."""

    name: Literal["muon"] = "muon"
    """Name of the optimiser."""
    matrix_learning_rate: Annotated[float, Above(0)] = 0.01
    """Peak learning rate of Muon."""
    matrix_weight_decay: Annotated[float, AtLeast(0)] = 0.0
    """Decoupled weight decay of Muon."""
    momentum: Annotated[float, AtLeast(0), AtMost(0.9999)] = 0.95
    """Nesterov momentum of Muon."""


@dataclass(frozen=True, kw_only=True)
class TrainerSection(Section):
    """The size of the work and the limits it must keep."""

    section: ClassVar[str] = "trainer"
    rounds: Annotated[int, Above(0)]
    """Rollout batches; each is followed by the updates made from it."""
    tasks_per_round: Annotated[int, Above(0)] = 64
    """Tasks rolled out in a round (for "sft": expert trajectories read)."""
    epochs: Annotated[int, Above(0)] = 1
    """Times a round's trajectories are gone through."""
    minibatch_trajectories: Annotated[int, Above(0)] = 16
    """Trajectories in one optimiser update."""
    max_microbatch_tokens: Annotated[int, Above(0)] = 16384
    """Padded tokens in one forward and backward pass."""
    max_skipped_updates: Annotated[int, Above(0)] = 5
    """Updates in a row that may be skipped for a gradient that is not finite before the run stops."""
    alignment_bound: Annotated[float, Above(0)] | None = None
    """Largest gap in nats between a rollout log-prob and the trainer's, in the first update of a round;
    None: 0.02, with bfloat16 1.0."""
    alignment_step_bound: Annotated[float, Above(0)] | None = None
    """Largest mean gap of a step in nats in the later updates of a round, when the student has moved; over at
    least 8 tokens. None measures it and judges nothing: how far an honest student moves depends on its
    learning rate."""
    teacher_cache_mib: Annotated[int, AtLeast(0)] = 1024
    """Memory for keeping the scores of teacher and reference over the epochs of a round, in MiB; those of
    offloaded models wait in host memory, all of them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models live; "auto" takes CUDA where there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the student's matrix products; "bfloat16" runs under autocast, weights stay as they are."""
    num_threads: Annotated[int, Above(0)] = 1
    """CPU threads of torch; bitwise repeatability is promised for 1."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSection(Section):
    """Evaluation on the held-out tasks."""

    section: ClassVar[str] = "evaluation"
    every: Annotated[int, AtLeast(0)] = 0
    """Rounds between evaluations, the first before training and the last after it; 0 for none."""
    num_samples: Annotated[int, Above(0)] = 1
    """Trajectories per task."""
    temperature: Annotated[float, AtLeast(0)] = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Above(0), AtMost(1)] = 1.0
    """Nucleus mass."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSection(Section):
    """When checkpoints are written and how many stay."""

    section: ClassVar[str] = "checkpoint"
    every: Annotated[int, AtLeast(0)] = 1
    """Rounds between checkpoints; 0 writes one at the end only."""
    keep_last: Annotated[int, Above(0)] = 2
    """Checkpoints kept."""


OptimizerSection = AdamWSection | MuonSection

OPTIMIZERS: dict[str, type[Section]] = {"adamw": AdamWSection, "muon": MuonSection}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run.

    `student`, `teacher`, `data` and `environment` are None where a Python caller hands over the objects.
    """

    run: RunSection
    """Run folder and seed."""
    trainer: TrainerSection
    """Size of the work and its limits."""
    algorithm: AlgorithmSection = field(default_factory=SODSection)
    """What is optimised."""
    optimizer: OptimizerSection = field(default_factory=AdamWSection)
    """How it is optimised."""
    rollout: RolloutSection = field(default_factory=RolloutSection)
    """How the student is sampled."""
    reward: RewardSection = field(default_factory=RewardSection)
    """How training shapes what the environment gives."""
    engine: EngineSection = field(default_factory=LockstepSection)
    """Who samples it."""
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    """Evaluation on held-out tasks."""
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """When checkpoints are written."""
    student: StudentSection | None = None
    """The model that is trained."""
    teacher: AnyTeacherSection | None = None
    """The model that it learns from; not for "sft"."""
    reference: ReferenceSection | None = None
    """The policy that "stm" holds steps to; None for the one that the run starts from."""
    data: DataSection | None = None
    """The task files."""
    environment: EnvironmentSection | None = None
    """What the student acts in."""

    def __post_init__(self) -> None:
        """Check what no section can check alone.

        Raises:
            ConfigError: For a section that the algorithm does not read, or limits that exclude each other.
        """
        name = self.algorithm.name
        rollout, trainer = self.rollout, self.trainer
        self._check_models()
        check_precision(self.engine, trainer.precision)
        if self.algorithm.has_reward_term and rollout.num_samples < 2:
            raise ConfigError(
                f"[rollout] num_samples = {rollout.num_samples}: the reward term of algorithm "
                f'"{name}" compares attempts at the same task; wanted at least 2, or no reward term'
            )
        has_ratio = self.algorithm.has_ratio
        temperature = getattr(self.algorithm, "temperature", None)
        if has_ratio and temperature not in (None, rollout.temperature):
            raise ConfigError(
                f"[algorithm] temperature = {temperature:g}: the policy-gradient term of "
                f'algorithm "{name}" compares probabilities at sampling time and now; '
                f"leave it out, or take [rollout] temperature = {rollout.temperature:g}"
            )
        if has_ratio and rollout.top_p < 1:
            raise ConfigError(
                f"[rollout] top_p = {rollout.top_p:g}: a truncated policy is not the one that the "
                f'policy-gradient term of algorithm "{name}" differentiates; wanted 1'
            )
        if rollout.max_turn_tokens > rollout.max_trajectory_tokens:
            raise ConfigError(
                f"[rollout] max_turn_tokens = {rollout.max_turn_tokens}: wanted at most "
                f"max_trajectory_tokens = {rollout.max_trajectory_tokens}"
            )
        if trainer.max_microbatch_tokens < rollout.max_trajectory_tokens:
            raise ConfigError(
                f"[trainer] max_microbatch_tokens = {trainer.max_microbatch_tokens}: wanted at least "
                f"[rollout] max_trajectory_tokens = {rollout.max_trajectory_tokens}, "
                "or one trajectory would not fit"
            )
        self._check_data()
        object.__setattr__(self, "environment", settle_penalty(self.environment, self.algorithm))

    def _check_models(self) -> None:
        for section in ("teacher", "reference"):
            needs = f"needs_{section}"
            if getattr(self, section) is not None and not getattr(self.algorithm, needs):
                readers = [f'"{each}"' for each, kind in ALGORITHMS.items() if getattr(kind, needs)]
                plural = "s" if len(readers) > 1 else ""
                raise ConfigError(
                    f"[{section}] belongs to algorithm{plural} {' and '.join(readers)}, but [algorithm] name "
                    f'= "{self.algorithm.name}"; remove it'
                )
        if self.teacher is not None:
            check_teacher(self.teacher, self.algorithm, self.rollout.temperature)

    def _check_data(self) -> None:
        name = self.algorithm.name
        if self.evaluation.every and isinstance(self.engine, ReplaySection):
            raise ConfigError(
                f'[evaluation] every = {self.evaluation.every}: engine "replay" plays what was stored, '
                "and evaluations are not; set every = 0"
            )
        wants_both = self.algorithm.reads_expert and self.algorithm.is_on_policy
        if self.data is not None and (self.data.expert is not None) != wants_both:
            what = "is missing; give a file of expert conversations to" if wants_both else "is not read by"
            raise ConfigError(f'[data] expert {what} algorithm "{name}"')
        if self.evaluation.every and self.data is not None and self.data.eval is None:
            raise ConfigError(
                f"[evaluation] every = {self.evaluation.every}: there is nothing to evaluate on; "
                "set [data] eval or every = 0"
            )

    @property
    def max_teacher_tokens(self) -> int:
        """Longest sequence that the teacher reads, in tokens."""
        extra = self.algorithm.max_extra_tokens if isinstance(self.algorithm, PrivilegedSection) else 0
        return self.rollout.max_trajectory_tokens + extra

    @property
    def trajectories_per_round(self) -> int:
        """Trajectories that a round trains on."""
        samples = self.rollout.num_samples if self.algorithm.is_on_policy else 1
        return self.trainer.tasks_per_round * samples

    @property
    def num_updates(self) -> int:
        """Optimiser updates over the whole run."""
        return self.trainer.rounds * self.updates_per_round

    @property
    def updates_per_round(self) -> int:
        """Optimiser updates made from one round."""
        return self.trainer.epochs * -(-self.trajectories_per_round // self.trainer.minibatch_trajectories)
