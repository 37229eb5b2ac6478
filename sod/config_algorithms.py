"""Settings of the algorithms: which terms a loss has, and with what numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

from sod.config_losses import BaseAlgorithmSection, DistillationSection, RewardedSection, SurrogateSection
from sod.config_schema import Above, AtLeast, AtMost
from sod.config_simct import SimCTSection
from sod.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SFTSection(BaseAlgorithmSection):
    """Cross-entropy on expert turns."""

    is_on_policy: ClassVar[bool] = False
    name: Literal["sft"] = "sft"
    """Name of the algorithm."""


@dataclass(frozen=True, kw_only=True)
class GRPOSection(SurrogateSection):
    """The reward alone, relative to the other attempts at the same task."""

    name: Literal["grpo"] = "grpo"
    """Name of the algorithm."""

    @property
    def has_reward_term(self) -> bool:
        """It has no other."""
        return True

    @property
    def has_ratio(self) -> bool:
        """It is nothing else."""
        return True


@dataclass(frozen=True, kw_only=True)
class OPDSection(RewardedSection):
    """On-policy distillation, every token alike; with a reward coefficient of 1 the SOD paper's baseline."""

    name: Literal["opd"] = "opd"
    """Name of the algorithm."""
    weight: str | None = None
    """A step weight of your own: "module:FUNCTION", or a name that a package registered; None for 1."""


@dataclass(frozen=True, kw_only=True)
class GKDSection(DistillationSection):
    """Distillation on rounds of the student's own and of an expert's trajectories (arXiv 2306.13649)."""

    name: Literal["gkd"] = "gkd"
    """Name of the algorithm."""
    form: Literal["vocab"] = "vocab"
    """An expert's tokens were not sampled, so there is no other form."""
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "jsd"
    """Divergence between student and teacher at each token, in nats."""
    on_policy_share: Annotated[float, Above(0), AtMost(1)] = 0.5
    """Probability that a round is the student's own; else it reads as many trajectories of [data] expert."""

    @property
    def reads_expert(self) -> bool:
        """Whether there are such rounds."""
        return self.on_policy_share < 1


@dataclass(frozen=True, kw_only=True)
class GatedOPDSection(RewardedSection):
    """The reward, and distillation that grows where a trajectory did worse than its group."""

    name: Literal["gated_opd"] = "gated_opd"
    """Name of the algorithm."""
    form: Literal["vocab", "sampled"] = "sampled"
    """"sampled" is the released advantage form."""
    low: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the distillation of a trajectory far better than its group."""
    high: Annotated[float, AtLeast(0)] = 0.1
    """Weight of one far worse."""
    steepness: Annotated[float, Above(0)] = 1.0
    """How fast the weight turns, per unit of advantage."""
    reward_coefficient: Annotated[float, Above(0)] = 1.0
    """Coefficient of the reward term, whose advantages the gate reads."""

    def __post_init__(self) -> None:
        """Check types, ranges and the order of the two weights."""
        super().__post_init__()
        if self.low > self.high:
            raise ConfigError(f"[algorithm] low = {self.low!r}: wanted at most high = {self.high!r}")


@dataclass(frozen=True, kw_only=True)
class TCODSection(RewardedSection):
    """On-policy distillation whose turns come in from the front (arXiv 2604.24005)."""

    name: Literal["tcod"] = "tcod"
    """Name of the algorithm."""
    rounds_per_turn: Annotated[int, Above(0)] = 6
    """Rounds after which one more turn is trained."""


@dataclass(frozen=True, kw_only=True)
class IWOPDSection(RewardedSection):
    """On-policy distillation in which tokens behind an unreliable prefix count less (arXiv 2606.22600)."""

    name: Literal["iw_opd"] = "iw_opd"
    """Name of the algorithm."""
    gamma: Annotated[float, AtLeast(0)] = 0.5
    """Weight of a trajectory's first token over that of its last."""


@dataclass(frozen=True, kw_only=True)
class TIPSection(RewardedSection):
    """On-policy distillation on the tokens that are unsure or far from the teacher (arXiv 2604.14084)."""

    name: Literal["tip"] = "tip"
    """Name of the algorithm."""
    keep: Annotated[float, Above(0), AtMost(1)] = 1.0
    """Share of the tokens that is kept; 1 weighs every token by its score."""


@dataclass(frozen=True, kw_only=True)
class SODSection(RewardedSection):
    """Step-wise on-policy distillation: each step weighted by its divergence (arXiv 2605.07725)."""

    name: Literal["sod"] = "sod"
    """Name of the algorithm."""
    form: Literal["vocab", "sampled"] = "sampled"
    """"sampled" is the paper's advantage form; "vocab" has the same expected gradient at lower variance."""
    delta: Annotated[float, AtLeast(0)] = 0.2
    """A step weight is at most 1 + delta; inf for no bound."""
    epsilon: Annotated[float, Above(0)] = 1e-6
    """Added to both divergences of the weight's ratio, in nats; raise it where the first step is easy."""
    step_divergence: Literal["abs_log_ratio", "kl"] = "abs_log_ratio"
    """What a step's divergence averages: the paper's |log-ratio| of sampled tokens, or the divergence."""
    weight: Literal["divergence", "decay_after_error", "mask_after_error"] = "divergence"
    """How a step is weighed; the last two are the paper's ablations: 0.9^j, and 0, after the first error."""
    reward_coefficient: Annotated[float, AtLeast(0)] = 1.0
    """Coefficient of the reward (GRPO) term; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Check types, ranges and that every setting is read at all."""
        super().__post_init__()
        if self.form == "sampled" and self.step_divergence == "kl":
            raise ConfigError(
                '[algorithm] step_divergence = "kl": belongs to form = "vocab"; at sampling time only the '
                "log-probs of sampled tokens are known"
            )
        for item in fields(SODSection):
            value = getattr(self, item.name)
            is_of_ratio = item.name in ("delta", "epsilon", "step_divergence")
            if is_of_ratio and self.weight != "divergence" and value != item.default:
                raise ConfigError(
                    f'[algorithm] {item.name} = {value!r}: belongs to weight = "divergence", '
                    f'but weight = "{self.weight}"; remove one of the two'
                )


@dataclass(frozen=True, kw_only=True)
class ATODSection(DistillationSection):
    """Annealed, turn-aware distillation that fades into reinforcement learning (arXiv 2606.27814)."""

    invalid_penalty: ClassVar[float] = 0.1
    name: Literal["atod"] = "atod"
    """Name of the algorithm."""
    form: Literal["vocab", "sampled"] = "sampled"
    """"sampled" is the paper's advantage form; "vocab" has the same expected gradient at lower variance."""
    distillation_start: Annotated[float, AtLeast(0)] = 1.0
    """Coefficient of the distillation term before the first round."""
    distillation_end: Annotated[float, AtLeast(0)] = 0.1
    """Coefficient of the distillation term once it is annealed."""
    reward_start: Annotated[float, AtLeast(0)] = 1.0
    """Coefficient of the reward term before the first round."""
    reward_end: Annotated[float, AtLeast(0)] = 2.0
    """Coefficient of the reward term once it is annealed."""
    anneal_rounds: Annotated[int, AtLeast(0)] = 80
    """Rounds over which both coefficients change linearly; 0 keeps those of the start, and a run of fewer
    rounds stops on the way."""
    min_turns: Annotated[int, Above(0)] = 3
    """Trajectories of fewer turns keep weight 1."""
    min_divergence: Annotated[float, AtLeast(0)] = 0.01
    """Trajectories whose largest step divergence is below it, in nats, keep weight 1."""
    mean_preserving: bool = False
    """Whether weights are scaled to a token mean of 1 per trajectory."""
    penalty_on: Literal["trajectory", "turn"] = "trajectory"
    """Whose advantage [environment] invalid_penalty lowers: the attempt's (paper) or the turn's (release)."""

    @property
    def has_reward_term(self) -> bool:
        """Whether the reward has a coefficient above 0 at any time."""
        return self.reward_start > 0 or (self.reward_end > 0 and self.anneal_rounds > 0)

    def __post_init__(self) -> None:
        """Check types, ranges and that both ends are reached."""
        super().__post_init__()
        for item in fields(ATODSection):
            is_end = item.name in ("distillation_end", "reward_end")
            if is_end and self.anneal_rounds == 0 and getattr(self, item.name) != item.default:
                raise ConfigError(
                    f"[algorithm] {item.name} = {getattr(self, item.name)!r}: is never reached with "
                    "anneal_rounds = 0; remove one of the two"
                )
        if self.penalty_on == "turn" and not self.has_reward_term:
            raise ConfigError(
                '[algorithm] penalty_on = "turn": belongs to a reward term, whose coefficient is 0 in every '
                "round; remove one of the two"
            )


_ANCHORS_THAT_READ = {
    "quantile": ("running_quantile", "batch_quantile"),
    "constant": ("constant",),
    "entropy_factor": ("entropy",),
}


@dataclass(frozen=True, kw_only=True)
class STMSection(RewardedSection):
    """Step-wise target mixing: far steps are held to the policy that the run started from (ours)."""

    needs_reference: ClassVar[bool] = True
    name: Literal["stm"] = "stm"
    """Name of the algorithm."""
    form: Literal["vocab"] = "vocab"
    """The second target is a divergence over the vocabulary, so there is no other form."""
    anchor: Literal["entropy", "constant", "running_quantile", "batch_quantile", "first_step"] = "entropy"
    """What a step's divergence is compared with: the student's own entropy in the step, a number, a quantile
    of the updates so far or of the microbatch, or as in SOD the first step of the trajectory."""
    entropy_factor: Annotated[float, Above(0)] = 1.5
    """Multiple of the student's entropy up to which the teacher is followed, for anchor = "entropy"."""
    constant: Annotated[float, Above(0)] = 0.1
    """Divergence in nats up to which the teacher is followed, for anchor = "constant"."""
    quantile: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    """Quantile of the step divergences, for anchor = "running_quantile" and "batch_quantile"."""
    delta: Annotated[float, AtLeast(0)] = 0.2
    """A step weight is at most 1 + delta."""
    epsilon: Annotated[float, Above(0)] = 0.02
    """Added to both divergences of the weight's ratio, in nats."""
    sharpness: Annotated[float, Above(0)] = 3.0
    """Power of the weight's ratio; 1 is SOD's form, more leaves far steps to the reference."""
    min_weight: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    """A step weight is at least this."""
    step_divergence: Literal["abs_log_ratio", "kl"] = "kl"
    """What a step's divergence averages: |log-ratio| of sampled tokens, or the divergence."""

    @property
    def anchor_quantile(self) -> float:
        """The quantile that is followed over the updates."""
        return self.quantile

    def __post_init__(self) -> None:
        """Check types, ranges and that the anchor's numbers are read at all."""
        super().__post_init__()
        for item in fields(STMSection):
            owners = _ANCHORS_THAT_READ.get(item.name, (self.anchor,))
            if self.anchor not in owners and getattr(self, item.name) != item.default:
                wanted = " or ".join(f'"{owner}"' for owner in owners)
                raise ConfigError(
                    f"[algorithm] {item.name} = {getattr(self, item.name)!r}: belongs to anchor = {wanted}, "
                    f'but anchor = "{self.anchor}"; remove one of the two'
                )


@dataclass(frozen=True, kw_only=True)
class PrivilegedSection(RewardedSection):
    """On-policy distillation from a teacher that is told more than the student (arXiv 2601.18734)."""

    placeholder: ClassVar[str]
    name: str
    """Name of the algorithm."""
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "jsd"
    """Divergence between student and teacher at each token, in nats; "sampled" has "reverse_kl" only."""
    prompt: str
    """What is added to the last message of the user where the teacher reads it."""
    max_extra_tokens: Annotated[int, Above(0)] = 1024
    """Tokens that a prompt of the teacher may have beyond the student's."""

    @property
    def told_field(self) -> str:
        """Field of a task that holds what the teacher is told."""
        return "answer"

    def __post_init__(self) -> None:
        """Check types, ranges and that the prompt has its place."""
        super().__post_init__()
        if self.prompt.count(self.placeholder) != 1:
            raise ConfigError(
                f"[algorithm] prompt = {self.prompt!r}: wanted {self.placeholder} in it once, where "
                "the teacher is told what the student does not read"
            )


@dataclass(frozen=True, kw_only=True)
class OPSDAnswerSection(PrivilegedSection):
    """Self-distillation: the teacher is told the right answer."""

    placeholder: ClassVar[str] = "{answer}"
    name: Literal["opsd_gt"] = "opsd_gt"
    """Name of the algorithm."""
    prompt: str = "\n\nThe right answer is: {answer}\nReach it by steps of your own."
    """What is added to the last message of the user where the teacher reads it, with {answer} in it."""


@dataclass(frozen=True, kw_only=True)
class OPSDHintSection(PrivilegedSection):
    """Self-distillation: the teacher is told a hint."""

    placeholder: ClassVar[str] = "{hint}"
    name: Literal["opsd_hint"] = "opsd_hint"
    """Name of the algorithm."""
    prompt: str = "\n\nA hint:\n{hint}\nUse it in steps of your own."
    """What is added to the last message of the user where the teacher reads it, with {hint} in it."""
    hint_field: str = "hint"
    """Column of [data] train with the hint: a text, or an expert's conversation without its last turn."""

    @property
    def told_field(self) -> str:
        """Field of a task that holds the hint."""
        return self.hint_field


AlgorithmSection = (
    SFTSection
    | GRPOSection
    | OPDSection
    | SODSection
    | ATODSection
    | STMSection
    | GatedOPDSection
    | TCODSection
    | IWOPDSection
    | TIPSection
    | GKDSection
    | OPSDAnswerSection
    | OPSDHintSection
    | SimCTSection
)

ALGORITHMS: dict[str, type[BaseAlgorithmSection]] = {
    "sft": SFTSection,
    "grpo": GRPOSection,
    "opd": OPDSection,
    "sod": SODSection,
    "atod": ATODSection,
    "stm": STMSection,
    "gated_opd": GatedOPDSection,
    "tcod": TCODSection,
    "iw_opd": IWOPDSection,
    "tip": TIPSection,
    "gkd": GKDSection,
    "opsd_gt": OPSDAnswerSection,
    "opsd_hint": OPSDHintSection,
    "simct": SimCTSection,
}
